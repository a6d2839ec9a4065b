"""mconv's quantization kernels beside ggml's `ggml_quantize_chunk`, on one core: weights per second and their ratio.

Both sides quantize the same rows in turn, and the median of several turns counts. Time is the CPU time of the thread,
which other work on the machine disturbs less than the clock on the wall.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import click
import numpy as np

from mconv.convert.cli.console import emit_json, emit_table, run_command
from mconv.convert.reporting import note
from mconv.convert.tensors.block_types import BlockType
from mconv.quantize import ggml, kernels

# The lowest acceptable ratio to ggml: plain, with importance.
GOALS = {"Q4_K": (6, 6), "Q5_K": (6, 6), "Q6_K": (4, 4), "IQ4_XS": (12, 12)}
ROW = 4096


@click.command()
@click.option("--rows", default=64, show_default=True, help=f"Rows of {ROW} weights a turn; one turn of theirs has 16.")
@click.option("--turns", default=9, show_default=True, help="Turns of which the median counts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(rows: int, turns: int, as_json: bool) -> None:
    """Compare every kernel with ggml, plain and with an importance matrix."""
    generator = np.random.default_rng(1)
    values = generator.normal(0, 0.02, (rows, ROW)).astype(np.float32)
    importance = generator.gamma(0.5, size=ROW).astype(np.float32)
    results = []
    for name in sorted(kernels.SUPPORTED):
        started = time.thread_time()
        kernels.prepare([name])
        note(f"{name} ready in {time.thread_time() - started:.1f} s")
        for weights in (None, importance):
            if weights is None or BlockType[name].uses_importance:
                results.append(_compare(name, values, weights, turns))
    if as_json:
        emit_json({"kernels": results})
        return
    headers = ("type", "importance", "ggml M/s", "ours M/s", "ratio", "at least", "same bytes")
    emit_table(headers, [[_text(cell) for cell in result.values()] for result in results])


def _compare(name: str, values: np.ndarray, weights: np.ndarray | None, turns: int) -> dict[str, object]:
    block_type = BlockType[name]
    ours = np.empty((len(values), block_type.row_bytes(ROW)), np.uint8)
    few = values[:16]
    theirs = np.empty((len(few), ours.shape[1]), np.uint8)
    kernels.quantize_rows(name, values, weights, ours)
    our_times, their_times = [], []
    for _ in range(turns):
        our_times.append(_seconds(lambda: kernels.quantize_rows(name, values, weights, ours)) / values.size)
        their_times.append(_seconds(lambda: ggml.quantize_rows(block_type, few, weights, theirs)) / few.size)
    our_time, their_time = median(our_times), median(their_times)
    return {
        "type": name,
        "importance": weights is not None,
        "ggml": 1e-6 / their_time,
        "ours": 1e-6 / our_time,
        "ratio": their_time / our_time,
        "at least": GOALS[name][weights is not None] if name in GOALS else None,
        "same": bool((ours[: len(few)] == theirs).all()),
    }


def _seconds(work: Callable[[], None]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def _text(cell: object) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if cell is None:
        return "-"
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)


if __name__ == "__main__":
    run_command(main)
