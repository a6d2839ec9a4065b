"""Run plans: read each row range once, encode it for every output, write it at its offset.

Memory is bounded by a few chunks per thread, for a model of any size. Each output is written as NAME.partial in its own
folder, with a journal beside it. Outputs get their final names only when all of them are complete and synced, so a
failed or interrupted run leaves no file that looks complete, and a killed run can be continued.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from mconv.convert.engine.jobs import chunk_rows, cut
from mconv.convert.engine.journal import Done, remove_journal
from mconv.convert.engine.keeper import JournalKeeper
from mconv.convert.engine.local import Executor, LocalExecutor
from mconv.convert.engine.outputs import GrowingFile, Output, begin, close_written
from mconv.convert.engine.partial import sync_folder
from mconv.convert.engine.plan import PlannedTensor
from mconv.convert.tensors.encodings import RowBlock, find_encoding
from mconv.convert.tensors.files import close_sources
from mconv.convert.tensors.rows import Target


@dataclass(frozen=True)
class Progress:
    """The progress of a run, in bytes of tensor data.

    Attributes:
        done, total: how much is written, and how much there is to write.
        resumed: how much of `done` was written by an earlier run.
    """

    done: int
    total: int
    resumed: int


OnProgress = Callable[[Progress], object]


@dataclass(frozen=True)
class Destination:
    """Where the encoded rows of a task are written.

    Attributes:
        file: index of the output.
        tensor: the tensor in its plan.
        job: index of the job in that plan.
    """

    file: int
    tensor: PlannedTensor
    job: int


@dataclass(frozen=True)
class Task:
    """A row range of one target, read once for all outputs that still need it."""

    target: Target
    start: int
    stop: int
    destinations: tuple[Destination, ...]

    @property
    def size(self) -> int:
        """Bytes of tensor data that the task writes."""
        return (self.stop - self.start) * sum(destination.tensor.row_bytes for destination in self.destinations)


def run(
    outputs: Sequence[Output],
    *,
    executor: Executor | None = None,
    overwrite: bool = False,
    keep_partial: bool = False,
    on_progress: OnProgress | None = None,
) -> Progress:
    """Write every output, or none. Continues the partial files of an earlier run with the same plans.

    Args:
        outputs: files of one model; a target that several plans share is read once. Call `check_outputs` first.
        executor: runs the tasks. Default: threads on all cores of this machine.
        overwrite: whether to replace existing files.
        keep_partial: keep partial files after an interrupt, to be continued. Without it, only a killed run leaves
            partial files.
        on_progress: called at the start and after each task.

    Returns:
        How much was written, and how much of that by an earlier run.

    Raises:
        SourceError: a weight is not finite, or a source is truncated or was changed during the run.
        QuantizationError: a value is outside the range of its encoding.
        DiskError: another run is writing an output, or another process replaced it.
        OSError: writing failed.
    """
    return carry_out(
        outputs, executor, overwrite=overwrite, keep_partial=keep_partial, on_progress=on_progress, locked=False
    )


def carry_out(
    outputs: Sequence[Output],
    executor: Executor | None,
    *,
    overwrite: bool,
    keep_partial: bool,
    on_progress: OnProgress | None,
    locked: bool,
    keep_journals: bool = False,
) -> Progress:
    """Like `run`, but also for the files of a folder.

    Args:
        locked: whether this run has already locked the folder.
        keep_journals: keep the journals beside files that have their final names, because the folder does not have its
            final name yet.
    """
    named = {output.path for output in outputs if output.is_named()}
    growing = [output for output in outputs if output.path not in named]
    before = sum(_data_bytes(output) for output in outputs if output.path in named)
    with ExitStack() as cleanup:
        cleanup.callback(close_sources)
        cleanup.callback(close_written)
        keep = KeyboardInterrupt if keep_partial else None
        begun = [begin(output, cleanup, keep=keep, locked=locked) for output in growing]
        files, done = [file for file, _ in begun], [done for _, done in begun]
        resumed = before + sum(_done_bytes(output, jobs) for output, jobs in zip(growing, done, strict=True))
        progress = Progress(resumed, sum(map(_data_bytes, outputs)), resumed)
        report = on_progress or (lambda _: None)
        report(progress)
        work = Worker(tuple(files), tuple(len(output.plan.header) for output in growing))
        with JournalKeeper(files, [output.plan.digest for output in growing], done, keep) as keeper:
            for task in (executor or LocalExecutor()).carry_out(work, _tasks(growing, done)):
                keeper.record(task.destinations)
                progress = Progress(progress.done + task.size, progress.total, resumed)
                report(progress)
            for source in {source for output in growing for source in output.plan.sources}:
                source.check_unchanged()
            keeper.finish(write_down=keep_journals or len(files) > 1)
        for file in files:
            file.give_name(overwrite=overwrite)
        for folder in {file.path.parent for file in files}:
            sync_folder(folder)
        if not keep_journals:
            for output in outputs:
                remove_journal(output.partial)
    return progress


def _data_bytes(output: Output) -> int:
    return sum(tensor.size for tensor in output.plan.tensors)


def _done_bytes(output: Output, done: Done) -> int:
    return sum(job.size for job in output.plan.jobs() if job.number in done) if len(done) else 0


def _tasks(outputs: Sequence[Output], done: Sequence[Done]) -> Iterator[Task]:
    """The remaining tasks, in the order of the plans, so that sources are read from front to back."""
    tensors: dict[Target, list[Destination]] = {}
    for number, output in enumerate(outputs):
        job = 0
        for tensor in output.plan.tensors:
            tensors.setdefault(tensor.target, []).append(Destination(number, tensor, job))
            job += sum(1 for _ in cut(tensor.target, whole=tensor.envelope is not None))
    for target, firsts in tensors.items():
        # A checksum needs all of the data, in order.
        for place, (start, stop) in enumerate(cut(target, whole=any(first.tensor.envelope for first in firsts))):
            wanted = tuple(
                Destination(first.file, first.tensor, first.job + place)
                for first in firsts
                if first.job + place not in done[first.file]
            )
            if wanted:
                yield Task(target, start, stop, wanted)


@dataclass(frozen=True)
class Worker:
    """Runs a task: read, check, encode, write.

    Attributes:
        files: the outputs.
        starts: the offset of the data of each.
    """

    files: tuple[GrowingFile, ...]
    starts: tuple[int, ...]

    def __call__(self, task: Task) -> None:
        """Run one task."""
        checksums = [0] * len(task.destinations)
        step = chunk_rows(task.target)
        for start in range(task.start, task.stop, step):
            block = RowBlock(task.target, start, task.target.rows.read(start, min(start + step, task.stop)))
            block.check_finite()
            # Outputs with the same encoding of this tensor share its bytes.
            encoded: dict[tuple[str, object], tuple[np.ndarray, ...]] = {}
            for place, destination in enumerate(task.destinations):
                tensor = destination.tensor
                key = (tensor.encoding, tensor.importance)
                if key not in encoded:
                    importance = tensor.importance.of_row(start) if tensor.importance else None
                    encoded[key] = find_encoding(tensor.encoding).encode(block, importance)
                for plane, data in zip(tensor.planes, encoded[key], strict=True):
                    view = data.data.cast("B")
                    self._write(destination, view, plane.offset + start * plane.row_bytes)
                    if tensor.envelope:
                        checksums[place] = zlib.crc32(view, checksums[place])
        for destination, checksum in zip(task.destinations, checksums, strict=True):
            tensor = destination.tensor
            if tensor.envelope:
                before, after = tensor.envelope.seal(checksum)
                self._write(destination, memoryview(before), tensor.planes[0].offset - len(before))
                self._write(destination, memoryview(after), tensor.planes[0].offset + tensor.size)

    def _write(self, destination: Destination, data: memoryview, offset: int) -> None:
        self.files[destination.file].write(data, self.starts[destination.file] + offset)
