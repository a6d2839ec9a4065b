"""The executor: carries out plans. Reads each row range once, encodes it for every output, writes it at its place.

Memory is bounded by a few chunks a thread, whatever the model. Each output grows as NAME.partial in its own folder;
only when all outputs are whole and synced do they get their names, so a failed or interrupted run leaves no file that
looks whole.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mconv.convert.cli.console import byte_progress, format_bytes
from mconv.convert.engine.partial import discard, lock, partial_path, sync_folder
from mconv.convert.engine.plan import Plan, PlannedTensor
from mconv.convert.errors import DiskError, UsageError
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.encodings import check_finite
from mconv.convert.tensors.nodes import row_length
from mconv.convert.tensors.rows import Target

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
        return partial_path(self.path)


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
        """Bytes of tensor data that the job writes."""
        return sum((self.stop - self.start) * tensor.row_bytes for _, tensor in self.destinations)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """The row range in steps of at most a chunk."""
        step = _step(self.target)
        return ((start, min(start + step, self.stop)) for start in range(self.start, self.stop, step))


def check_outputs(outputs: Sequence[Output], inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse what could not end well, before anything is written.

    Args:
        outputs: what is about to be written.
        inputs: files that are about to be read.
        overwrite: whether a file that exists may be replaced.

    Raises:
        UsageError: two outputs share a name, or an output is an input.
        DiskError: an output exists already, its folder does not, or the disk has no room for all of them.
    """
    if len({output.path.resolve() for output in outputs}) != len(outputs):
        raise UsageError("two outputs would have one name", "give each type once")
    sources = {source.resolve() for source in inputs}
    needed: dict[Path, int] = {}
    for output in outputs:
        # Before all else: a path such as `.` has no name to add anything to.
        if output.path.is_dir():
            raise DiskError(f"{output.path} is a folder", "give the name of a file")
        if not sources.isdisjoint((output.path.resolve(), output.partial.resolve())):
            raise UsageError(f"{output.path} would overwrite what is read", "choose another name")
        if output.path.exists() and not output.path.is_file():
            raise DiskError(f"{output.path} is no regular file", "give the name of a file")
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
        files = [_begin(output, cleanup) for output in outputs]
        starts = [len(output.plan.header) for output in outputs]
        jobs = list(_jobs([output.plan for output in outputs]))
        with byte_progress(sum(job.size for job in jobs), what) as bar:
            _run_jobs(jobs, _Worker(files, starts, encode), threads, bar.update)
        for file in files:
            file.sync()
        for output in outputs:
            output.partial.replace(output.path)
        for folder in {output.path.parent for output in outputs}:
            sync_folder(folder)


@dataclass(frozen=True)
class _GrowingFile:
    """An open output; the operating system's errors name its path."""

    path: Path
    handle: int

    def resize(self, size: int) -> None:
        with self._named():
            os.ftruncate(self.handle, 0)
            os.ftruncate(self.handle, size)

    def write(self, data: memoryview, offset: int) -> None:
        with self._named():
            while data:
                count = os.pwrite(self.handle, data, offset)
                data, offset = data[count:], offset + count

    def sync(self) -> None:
        with self._named():
            os.fsync(self.handle)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = str(self.path)
            raise


def _begin(output: Output, cleanup: ExitStack) -> _GrowingFile:
    """Open the growing file, at its full size and with its header; `cleanup` closes it, and on an error discards it."""
    partial = output.partial
    cleanup.push(lambda error, *_: discard(partial) if error else None)
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if partial.is_symlink() or (partial.exists() and not partial.is_file()):
            raise DiskError(f"{partial} is in the way", "remove it, or choose another name") from error
        raise
    cleanup.callback(os.close, handle)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        raise DiskError(f"{partial} is in the way", "remove it, or choose another name")
    if not lock(handle, partial):
        raise DiskError(f"{output.path} is being written by another run", "wait for it, or choose another name")
    file = _GrowingFile(output.path, handle)
    file.resize(output.plan.size)
    file.write(memoryview(output.plan.header), 0)
    return file


def _jobs(plans: Sequence[Plan]) -> Iterator[_Job]:
    """Row ranges in the order of the plans, so that sources are read from front to back."""
    destinations_of: dict[str, list[tuple[int, PlannedTensor]]] = {}
    for place, plan in enumerate(plans):
        for tensor in plan.tensors:
            destinations_of.setdefault(tensor.target.name, []).append((place, tensor))
    for destinations in destinations_of.values():
        target = destinations[0][1].target
        if any(tensor.envelope for _, tensor in destinations):
            # A checksum needs all of the data, in its order.
            yield _Job(target, 0, target.rows.count, tuple(destinations))
            continue
        # A stack of experts is cut at its experts: each has importance weights of its own.
        matrix_rows = target.shape[-2] if len(target.shape) > 2 else target.rows.count
        step = _step(target)
        for matrix in range(0, target.rows.count, matrix_rows):
            for start in range(matrix, matrix + matrix_rows, step):
                yield _Job(target, start, min(start + step, matrix + matrix_rows), tuple(destinations))


def _step(target: Target) -> int:
    return max(1, CHUNK_WEIGHTS // row_length(target.shape))


class _Worker:
    """What every thread does with a job."""

    def __init__(self, files: Sequence[_GrowingFile], starts: Sequence[int], encode: Encode) -> None:
        self._files = files
        self._starts = starts
        self._encode = encode
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let the jobs that have not begun pass by."""
        self._stopped.set()

    def __call__(self, job: _Job) -> int:
        """Read, check, encode and write one row range; returns the bytes of data written."""
        # Outputs that agree on the type of this tensor share its blocks.
        kinds = {tensor.type for _, tensor in job.destinations}
        checksums = [0] * len(job.destinations)
        for start, stop in job.pieces():
            if self._stopped.is_set():
                return 0
            rows = job.target.rows.read(start, stop)
            if rows.dtype != np.uint8:
                check_finite(job.target, rows, start)
            encoded = self._encode(job.target, kinds, rows, start)
            for number, (place, tensor) in enumerate(job.destinations):
                data = encoded[tensor.type].data.cast("B")
                self._files[place].write(data, self._offset(place, tensor) + start * tensor.row_bytes)
                if tensor.envelope:
                    checksums[number] = zlib.crc32(data, checksums[number])
        for (place, tensor), checksum in zip(job.destinations, checksums, strict=True):
            if tensor.envelope:
                self._seal(place, tensor, tensor.envelope.seal(checksum))
        return job.size

    def _seal(self, place: int, tensor: PlannedTensor, around: tuple[bytes, bytes]) -> None:
        begin = self._offset(place, tensor)
        self._files[place].write(memoryview(around[0]), begin - len(around[0]))
        self._files[place].write(memoryview(around[1]), begin + tensor.info.size)

    def _offset(self, place: int, tensor: PlannedTensor) -> int:
        return self._starts[place] + tensor.offset


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
