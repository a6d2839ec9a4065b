"""The main job on the bundled example: convert, quantize to four types, measure and listen to each.

    make demo

Every step is a command that a user would type; this script only runs them and gathers their JSON into one table.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from convert.console import emit_table, format_bytes

HERE = Path(__file__).resolve().parent
MODEL = HERE / "tiny-mistral"
TEXT = HERE / "tiny-mistral-eval.txt"
OUTPUT = HERE.parent / "build" / "demo"
TYPES = ("Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS")
PROMPT = "Once upon a time"
CHUNKS = 20


def main() -> None:
    """Run the commands and print the table."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    bf16 = OUTPUT / "tiny-mistral-BF16.gguf"
    files = run("mconv", "hf-to-gguf", MODEL, bf16, "--overwrite")["files"]
    types = [word for name in TYPES for word in ("--type", name)]
    files += run("mquant", MODEL, *types, "--output-dir", OUTPUT, "--overwrite")["files"]
    paths = [file["path"] for file in files]
    measured = run("mval", "perplexity", *paths, "--text", TEXT, "--chunks", CHUNKS)["results"]
    spoken = run("mval", "generate", *paths, "--prompt", PROMPT, "--max-tokens", 24)["results"]
    texts = {result["file"]: result["text"] for result in spoken if not result["template"]}
    click.echo()
    emit_table(
        ["type", "size", "bits/weight", "perplexity", f"continues '{PROMPT}'"],
        (
            [
                file["type"],
                format_bytes(file["bytes"]),
                f"{file['bits_per_weight']:.2f}",
                f"{result['perplexity']:.4f} ± {result['standard_error']:.4f}",
                " ".join(texts[file["path"]].split()),
            ]
            for file, result in zip(files, measured, strict=True)
        ),
    )


def run(command: str, *arguments: object) -> dict[str, Any]:
    """Run one of our commands with --json, showing what was typed; returns its object."""
    words = [command, *map(str, arguments), "--json"]
    click.echo(f"$ {shlex.join(words)}", err=True)
    program = Path(sys.executable).with_name(command)
    result = subprocess.run([program, *words[1:]], stdout=subprocess.PIPE, check=True, cwd=HERE.parent)
    return dict(json.loads(result.stdout))


if __name__ == "__main__":
    main()
