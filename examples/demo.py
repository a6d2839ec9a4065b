"""The main job on the bundled example, in two parts, each with a table at its end.

    make demo

The first part converts, quantizes to four types and checks the weights of each file. The second runs the models,
applies the gates and builds a release. Every step is a command that a user would type; this script only runs the
commands and collects their JSON.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from mconv.convert.cli.console import emit_table
from mconv.convert.reporting import format_bytes

ROOT = Path(__file__).resolve().parent.parent
# As a user would type them in the root folder.
MODEL = Path("examples/tiny-mistral")
RECIPE = Path("examples/tiny-mistral-release.toml")
OUTPUT = Path("build/demo")
RELEASE = OUTPUT / "tiny-mistral-GGUF"
TYPES = ("Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS")


@click.group()
def cli() -> None:
    """Run the commands and print a table."""


@cli.command()
def files() -> None:
    """Convert, quantize and check the weights. No model is run, so nothing has to be compiled first."""
    (ROOT / OUTPUT).mkdir(parents=True, exist_ok=True)
    types = [word for name in TYPES for word in ("--type", name)]
    converted = run("mconv", "hf-to-gguf", MODEL, OUTPUT / "tiny-mistral-BF16.gguf", "--overwrite")
    quantized = run("mquant", MODEL, *types, "--output-dir", OUTPUT, "--overwrite")
    written = [*converted["files"], *quantized["files"]]
    proof = run("mval", "weights", *(output["path"] for output in written), "--reference", MODEL)
    click.echo()
    emit_table(
        ["file", "size", "bits/weight", "tensors", "exact"],
        (
            [
                Path(output["path"]).name,
                format_bytes(output["bytes"]),
                f"{output['bits_per_weight']:.2f}",
                str(len(weights["tensors"])),
                str(weights["exact"]),
            ]
            for output, weights in zip(written, proof["results"], strict=True)
        ),
    )
    click.echo("\nexact: byte for byte what the type makes of the original's tensor")
    click.echo(f"the files: {OUTPUT}")


@cli.command()
def release() -> None:
    """Build, measure and check a release, and say what publishing it would do."""
    run("mrelease", "build", RECIPE, "--folder", RELEASE)
    run("mrelease", "check", RECIPE, "--folder", RELEASE)
    run("mrelease", "publish", RECIPE, "--folder", RELEASE, "--dry-run")
    report = json.loads((ROOT / RELEASE / "validation.json").read_text(encoding="utf-8"))
    divergence = {row["file"]: row for row in report["kl"]["results"]}
    answers = {
        row["file"]: row["text"]
        for row in report["generate"]["results"]
        if not row["template"] and row["sampling"] is None
    }
    click.echo()
    emit_table(
        ["type", "size", "bits/weight", "perplexity", "mean KL", "same top", "continues 'Once upon a time'"],
        (
            [
                artifact["type"],
                format_bytes(artifact["bytes"]),
                f"{artifact['bits_per_weight']:.2f}",
                f"{row['perplexity']:.4f} \u00b1 {row['perplexity_standard_error']:.4f}",
                f"{row['kl']['mean']:.6f}",
                f"{100 * row['same_top']:.2f} %",
                " ".join(answers[artifact["file"]].split())[:60],
            ]
            for artifact in report["artifacts"]
            for row in (divergence[artifact["file"]],)
        ),
    )
    click.echo(f"\nthe release: {RELEASE}; open its report.html, and README.md is its card")


def run(command: str, *arguments: object) -> dict[str, Any]:
    """Print and run one of our commands with --json; returns its object."""
    words = [command, *map(str, arguments), "--json"]
    click.echo(f"$ {shlex.join(words)}", err=True)
    program = Path(sys.executable).with_name(command)
    result = subprocess.run([program, *words[1:]], stdout=subprocess.PIPE, check=True, cwd=ROOT)
    return dict(json.loads(result.stdout))


if __name__ == "__main__":
    cli()
