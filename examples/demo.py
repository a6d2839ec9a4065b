"""The main job on the bundled example: convert, quantize to four types, check each file, and build a release.

    make demo

Every step is a command that a user would type. This script only runs them and collects their JSON into one table.
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

HERE = Path(__file__).resolve().parent
MODEL = HERE / "tiny-mistral"
RECIPE = HERE / "tiny-mistral-release.toml"
OUTPUT = HERE.parent / "build" / "demo"
RELEASE = OUTPUT / "tiny-mistral-GGUF"


def main() -> None:
    """Run the commands and print the table."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    run("mconv", "hf-to-gguf", MODEL, OUTPUT / "tiny-mistral-BF16.gguf", "--overwrite")
    run("mrelease", "build", RECIPE, "--folder", RELEASE)
    run("mrelease", "check", RECIPE, "--folder", RELEASE)
    run("mrelease", "publish", RECIPE, "--folder", RELEASE, "--dry-run")
    report = json.loads((RELEASE / "validation.json").read_text(encoding="utf-8"))
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
    click.echo(f"\nthe release: {RELEASE.relative_to(HERE.parent)}; open its report.html, and README.md is its card")


def run(command: str, *arguments: object) -> dict[str, Any]:
    """Print and run one of our commands with --json; returns its object."""
    words = [command, *map(str, arguments), "--json"]
    click.echo(f"$ {shlex.join(words)}", err=True)
    program = Path(sys.executable).with_name(command)
    result = subprocess.run([program, *words[1:]], stdout=subprocess.PIPE, check=True, cwd=HERE.parent)
    return dict(json.loads(result.stdout))


if __name__ == "__main__":
    main()
