"""mval kl beside the forward passes of each model alone: how much lock-step adds.

python benchmarks/kl.py REFERENCE ARTIFACT ... TEXT [--ctx N] [--chunks N] [--threads N] [--runs N]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import numpy as np

from mconv.inference.chunks import cut, read_text, with_bos
from mconv.inference.language_model import LanguageModel
from mconv.inference.open_model import open_model
from mconv.inference.schedule import Schedule
from mconv.validate.divergence.lockstep import measure_divergence


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def forward(model: LanguageModel, chunks: np.ndarray, models: int) -> None:
    """Run every chunk in the steps of lock-step, and do nothing with the logits."""
    for _ in model.scored_logits(chunks, Schedule.of(chunks.shape, model.vocab_size, models)):
        pass


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--ctx", default=512, show_default=True)
@click.option("--chunks", default=8, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--runs", default=5, show_default=True)
def main(paths: tuple[Path, ...], ctx: int, chunks: int, threads: int, runs: int) -> None:
    """Print the median of each, and the ratio; PATHS are the reference, artifacts and a text."""
    *files, text = paths
    with ExitStack() as stack:
        models = [stack.enter_context(open_model(path, threads)) for path in files]
        read = with_bos(models[0].vocabulary, cut(models[0].vocabulary.tokenize(read_text(text)), ctx, chunks))
        lock_step: list[tuple[float, float]] = []
        alone: list[list[tuple[float, float]]] = []
        for _ in range(runs + 1):
            alone.append([cost(partial(forward, model, read, len(models))) for model in models])
            whole = partial(measure_divergence, models[0], models[1:], [text], length=ctx, limit=chunks)
            lock_step.append(cost(whole))
    # The first run is not counted: it reads the files.
    columns = [list(zip(*each[1:], strict=True)) for each in zip(*alone, strict=True)]
    medians = [[statistics.median(values) for values in each] for each in columns]
    for path, (wall, cpu) in zip(files, medians, strict=True):
        click.echo(f"{path.name:32}  alone      wall {wall:6.2f} s  CPU {cpu:6.2f} s")
    together = [statistics.median(values) for values in zip(*lock_step[1:], strict=True)]
    click.echo(f"{'all':32}  lock-step  wall {together[0]:6.2f} s  CPU {together[1]:6.2f} s")
    ratios = [whole / sum(each) for whole, each in zip(together, zip(*medians, strict=True), strict=True)]
    click.echo(f"{'ratio to the sum':32}             wall {ratios[0]:6.3f}    CPU {ratios[1]:6.3f}")


if __name__ == "__main__":
    main()
