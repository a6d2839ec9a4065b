"""Every benchmark, one after the other: `make bench`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples"
# The pipeline benchmark writes it on its way.
MODEL = "build/bench/tiny-mistral-Q4_K_M.gguf"


def main() -> None:
    """Run them; each compares ours with a peer in one run and prints the ratio."""
    perplexity = [MODEL, EXAMPLE / "tiny-mistral-eval.txt", "--llama-perplexity", os.environ["MCONV_LLAMA_PERPLEXITY"]]
    for name, arguments in (
        ("kernels", list[object]()),
        ("pipeline", []),
        ("perplexity", [*perplexity, "--chunks", "100"]),
    ):
        click.echo(f"\n{name}\n{'=' * len(name)}")
        subprocess.run([sys.executable, HERE / f"{name}.py", *arguments], check=True)


if __name__ == "__main__":
    main()
