"""mval perplexity beside llama-perplexity: the same file, text and threads, whole processes, one after the other.

python benchmarks/perplexity.py model.gguf text.txt --llama-perplexity PATH [--chunks N] [--threads N] [--runs N]
"""

from __future__ import annotations

import json
import math
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

MVAL = (sys.executable, "-c", "from mconv.validate.cli import main; main()", "perplexity")


def run(command: Sequence[str]) -> tuple[float, float, str]:
    """Wall seconds, CPU seconds and output of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, done.stdout + done.stderr


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("text", type=click.Path(path_type=Path, exists=True))
@click.option("--llama-perplexity", "binary", required=True, help="The binary of the installed llama.cpp.")
@click.option("--ctx", default=512, show_default=True)
@click.option("--chunks", default=16, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--runs", default=3, show_default=True)
def main(model: Path, text: Path, binary: str, ctx: int, chunks: int, threads: int, runs: int) -> None:
    """Print the median of each, and the ratio."""
    shared = ["--chunks", str(chunks), "--threads", str(threads)]
    ours = [*MVAL, str(model), "--text", str(text), "--ctx", str(ctx), *shared, "--json"]
    theirs = [binary, "-m", str(model), "-f", str(text), "-c", str(ctx), *shared]
    times: dict[str, list[tuple[float, float]]] = {"mval": [], "llama-perplexity": []}
    values = dict.fromkeys(times, math.nan)
    for _ in range(runs):
        *spent, output = run(ours)
        times["mval"].append((spent[0], spent[1]))
        values["mval"] = json.loads(output)["results"][0]["perplexity"]
        *spent, output = run(theirs)
        times["llama-perplexity"].append((spent[0], spent[1]))
        # It can exit before the last lines of its log are written.
        if found := re.search(r"PPL = ([\d.]+)", output):
            values["llama-perplexity"] = float(found[1])
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    for name, (wall, cpu) in medians.items():
        click.echo(f"{name:17}  perplexity {values[name]:.4f}  wall {wall:.2f} s  CPU {cpu:.2f} s")
    ratios = [ours / theirs for ours, theirs in zip(*medians.values(), strict=True)]
    click.echo(f"{'ratio':17}  wall {ratios[0]:.3f}  CPU {ratios[1]:.3f}")


if __name__ == "__main__":
    main()
