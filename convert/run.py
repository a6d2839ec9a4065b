"""The executor: carries out plans. Reads each row range once, encodes it for every output, writes it at its place.

Memory is bounded by a few chunks a thread, whatever the model. Each output grows as NAME.partial in its own folder;
only when all outputs are whole and synced do they get their names, so a failed or interrupted run leaves no file that
looks whole.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from convert.console import byte_progress, format_bytes
from convert.encodings import check_finite
from convert.errors import DiskError, UsageError
from convert.families.table import Target
from convert.plan import Plan, PlannedTensor
from convert.types import BlockType

# Weights in a chunk: large enough that a call's overhead vanishes, small enough that every core has work to the end and
# that a thread's buffers stay in a few megabytes.
CHUNK_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class Output:
    """A plan and the file that it becomes."""

    plan: Plan
    path: Path

    @property
    def partial(self) -> Path:
        """The file's name while it is written."""
        return self.path.with_name(self.path.name + ".partial")


class Encode(Protocol):
    """Turns rows of a tensor into the bytes of the types that the outputs want."""

    def __call__(
        self, target: Target, kinds: Collection[BlockType], rows: np.ndarray, first_row: int
    ) -> Mapping[BlockType, np.ndarray]:
        """Encode rows [first_row, first_row + n) as stored (n, k) to each kind: uint8 (n, row bytes)."""


@dataclass(frozen=True)
class _Job:
    """A row range of one target, and where its encodings go."""

    target: Target
    start: int
    stop: int
    destinations: tuple[tuple[int, PlannedTensor], ...]

    @property
    def size(self) -> int:
        """Bytes that the job writes."""
        return sum((self.stop - self.start) * tensor.row_bytes for _, tensor in self.destinations)


def check_outputs(outputs: Sequence[Output], *, overwrite: bool) -> None:
    """Refuse what could not end well, before anything is written.

    Raises:
        UsageError: two outputs share a name.
        DiskError: an output exists already, its folder does not, or the disk has no room for all of them.
    """
    if len({output.path.resolve() for output in outputs}) != len(outputs):
        raise UsageError("two outputs would have one name", "give each type once")
    needed: dict[Path, int] = {}
    for output in outputs:
        if output.path.is_dir():
            raise DiskError(f"{output.path} is a folder", "give the name of a file")
        if output.path.exists() and not overwrite:
            raise DiskError(f"{output.path} exists already", "choose another name, or pass --overwrite")
        folder = output.path.parent
        if not folder.is_dir():
            raise DiskError(f"{folder}: no such folder", "create it first, or choose another output")
        needed[folder] = needed.get(folder, 0) + output.plan.size
    for folder, size in needed.items():
        free = shutil.disk_usage(folder).free
        if size > free:
            raise DiskError(
                f"no room in {folder}: {format_bytes(size)} needed, {format_bytes(free)} free",
                "free some space, or choose another output folder",
            )


def run(outputs: Sequence[Output], encode: Encode, *, threads: int, what: str) -> None:
    """Write every output, or none.

    Args:
        outputs: files of one model; a target that several plans have is read once.
        encode: turns rows into bytes; called from several threads at once.
        threads: how many row ranges are worked on at once.
        what: label of the progress bar.

    Raises:
        SourceError: a weight is not finite, or the source is truncated.
        OSError: writing failed.
    """
    with ExitStack() as cleanup:
        handles = []
        for output in outputs:
            cleanup.callback(output.partial.unlink, missing_ok=True)
            handle = cleanup.enter_context(output.partial.open("wb", buffering=0))
            handle.truncate(output.plan.size)
            handles.append(handle.fileno())
            _write(handles[-1], memoryview(output.plan.header), 0)
        starts = [len(output.plan.header) for output in outputs]
        jobs = list(_jobs([output.plan for output in outputs]))
        with byte_progress(sum(job.size for job in jobs), what) as bar:
            _run_jobs(jobs, _Worker(handles, starts, encode), threads, bar.update)
        _sync(handles)
        for output in outputs:
            output.partial.replace(output.path)
        for folder in {output.path.parent for output in outputs}:
            _sync_folder(folder)


def _jobs(plans: Sequence[Plan]) -> Iterator[_Job]:
    """Row ranges in the order of the plans, so that sources are read from front to back."""
    destinations_of: dict[str, list[tuple[int, PlannedTensor]]] = {}
    for place, plan in enumerate(plans):
        for tensor in plan.tensors:
            destinations_of.setdefault(tensor.target.name, []).append((place, tensor))
    for destinations in destinations_of.values():
        target = destinations[0][1].target
        # A stack of experts is cut at its experts: each has importance weights of its own.
        matrix_rows = target.shape[-2] if len(target.shape) > 2 else target.rows.count
        width = target.shape[-1] if len(target.shape) > 1 else 1
        step = max(1, CHUNK_WEIGHTS // width)
        for matrix in range(0, target.rows.count, matrix_rows):
            for start in range(matrix, matrix + matrix_rows, step):
                yield _Job(target, start, min(start + step, matrix + matrix_rows), tuple(destinations))


class _Worker:
    """What every thread does with a job."""

    def __init__(self, handles: Sequence[int], starts: Sequence[int], encode: Encode) -> None:
        self._handles = handles
        self._starts = starts
        self._encode = encode
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let the jobs that have not begun pass by."""
        self._stopped.set()

    def __call__(self, job: _Job) -> int:
        """Read, check, encode and write one row range; returns the bytes written."""
        if self._stopped.is_set():
            return 0
        rows = job.target.rows.read(job.start, job.stop)
        if rows.dtype != np.uint8:
            check_finite(job.target, rows, job.start)
        # Outputs that agree on the type of this tensor share its blocks.
        kinds = {tensor.type for _, tensor in job.destinations}
        encoded = self._encode(job.target, kinds, rows, job.start)
        for place, tensor in job.destinations:
            blocks = encoded[tensor.type]
            offset = self._starts[place] + tensor.offset + job.start * tensor.row_bytes
            _write(self._handles[place], blocks.data.cast("B"), offset)
        return job.size


def _run_jobs(jobs: Sequence[_Job], worker: _Worker, threads: int, advance: Callable[[int], object]) -> None:
    """Keep every thread busy with a short queue, so that a failure or Ctrl-C stops all of them soon."""
    pending: set[Future[int]] = set()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for job in jobs:
                pending.add(pool.submit(worker, job))
                if len(pending) >= 2 * threads:
                    pending = _collect(pending, advance)
            while pending:
                pending = _collect(pending, advance)
        except BaseException:
            worker.stop()
            raise


def _collect(pending: set[Future[int]], advance: Callable[[int], object]) -> set[Future[int]]:
    done, rest = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        advance(future.result())
    return rest


def _write(handle: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(handle, data, offset)
        data, offset = data[count:], offset + count


def _sync(handles: Sequence[int]) -> None:
    for handle in handles:
        os.fsync(handle)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
