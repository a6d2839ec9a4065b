"""Outputs: the files that plans describe, from the first check of the disk to the final rename."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mconv.convert.engine.journal import Done, Entry, journal_files, journal_path, read_journal, remove_journal
from mconv.convert.engine.partial import discard, give_name, lock, naming, partial_path, sync_folder
from mconv.convert.engine.plan import Plan
from mconv.convert.errors import DiskError, UsageError
from mconv.convert.reporting import format_bytes
from mconv.convert.tensors.files import HandleCache


@dataclass(frozen=True)
class Output:
    """A plan and the file to write."""

    plan: Plan
    path: Path

    @property
    def partial(self) -> Path:
        """The file's name while it is written."""
        return partial_path(self.path)

    def entry(self) -> Entry | None:
        """The journal entry for this plan and the existing partial file; None if the run starts from the beginning."""
        entry = read_journal(journal_path(self.partial))
        if entry is None or (entry.digest, entry.done.count) != (self.plan.digest, self.plan.job_count):
            return None
        # A run that was killed while it renamed several files has renamed some of them.
        place = self.path if self._is_named(entry) else self.partial
        status = _regular(place)
        return entry if status and (status.st_ino, status.st_size) == (entry.inode, self.plan.size) else None

    def is_named(self) -> bool:
        """Whether a killed run has already completed the file and given it its final name."""
        entry = self.entry()
        return entry is not None and self._is_named(entry)

    def _is_named(self, entry: Entry) -> bool:
        status = _regular(self.path)
        return status is not None and (status.st_ino, status.st_mtime_ns) == (entry.inode, entry.changed_ns)


def _regular(path: Path) -> os.stat_result | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def check_outputs(outputs: Sequence[Output], inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Reject outputs that cannot be written, before writing anything.

    Args:
        outputs: the files that will be written.
        inputs: the files that will be read.
        overwrite: whether to replace existing files.

    Raises:
        UsageError: two outputs have the same name, or an output is an input.
        DiskError: an output exists already, its folder does not exist, or the disk has no room for the remaining data.
    """
    if len({resolved(output.path) for output in outputs}) != len(outputs):
        raise UsageError("two outputs have the same name", "give each type once")
    sources = {resolved(source) for source in inputs}
    needed: dict[Path, int] = {}
    for output in outputs:
        # Check this first: a path such as `.` has no name to append to.
        if output.path.is_dir():
            raise DiskError(f"{output.path} is a folder", "give the name of a file")
        if not sources.isdisjoint((resolved(output.path), resolved(output.partial))):
            raise UsageError(f"{output.path} would overwrite an input file", "choose another name")
        if output.path.exists() and not output.path.is_file():
            raise DiskError(f"{output.path} is not a regular file", "give the name of a file")
        named = output.path.exists() and output.is_named()
        if output.path.exists() and not overwrite and not named:
            raise DiskError(f"{output.path} exists already", "choose another name, or pass --overwrite")
        folder = output.path.parent
        if not folder.is_dir():
            raise DiskError(f"{folder}: no such folder", "create it first, or choose another output")
        if not named:
            needed[folder] = needed.get(folder, 0) + output.plan.size - _allocated(output.partial)
    for folder, size in needed.items():
        check_room(folder, size)


def check_room(folder: Path, size: int) -> None:
    """Check that the disk has room for a number of bytes.

    Raises:
        DiskError: fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DiskError(
            f"not enough space in {folder}: {format_bytes(size)} needed, {format_bytes(free)} free",
            "free some space, or choose another output folder",
        )


def resolved(path: Path) -> Path:
    """The path with all links followed.

    Raises:
        DiskError: the links form a loop.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise DiskError(f"{path}: a loop of symbolic links", "remove the links, or choose another name") from error


def _allocated(partial: Path) -> int:
    """Bytes that a partial file occupies: it has its full size from the start, mostly as a hole."""
    status = _regular(partial)
    return min(status.st_blocks * 512, status.st_size) if status else 0


@dataclass(frozen=True)
class GrowingFile:
    """An output while it is written. It is plain data: every process that writes to it opens it separately.

    Attributes:
        path: its final name, used in messages.
        partial: its name while it is written.
        inode: identifies the file, even if it is renamed.
    """

    path: Path
    partial: Path
    inode: int

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of the data at an offset."""
        with naming(self.path), _written.handle(self) as handle:
            while data:
                count = os.pwrite(handle, data, offset)
                data, offset = data[count:], offset + count

    def sync_data(self) -> None:
        """Wait until the data is on the disk."""
        with naming(self.path), _written.handle(self) as handle:
            os.fdatasync(handle)

    def sync(self) -> os.stat_result:
        """Wait until data and size are on the disk; return the status of the file."""
        with naming(self.path), _written.handle(self) as handle:
            os.fsync(handle)
            return os.fstat(handle)

    def give_name(self, *, overwrite: bool) -> None:
        """Give the file its final name; see `partial.give_name`."""
        with naming(self.path), _written.handle(self) as handle:
            give_name(handle, self.partial, self.path, overwrite=overwrite)


def _open_growing(file: GrowingFile) -> int:
    handle = os.open(file.partial, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if os.fstat(handle).st_ino != file.inode:
        os.close(handle)
        raise DiskError(f"{file.partial} was replaced during the run", "make sure that no other process writes there")
    return handle


_written = HandleCache(_open_growing)


def close_written() -> None:
    """Close the files that were written."""
    _written.close()


def begin(
    output: Output, cleanup: ExitStack, *, keep: type[BaseException] | None, locked: bool
) -> tuple[GrowingFile, Done]:
    """Open the partial file, at its full size and with its header, and find out which of its jobs are done.

    Args:
        cleanup: gets a callback that removes the partial file after an error.
        keep: an error after which the partial file is kept instead, to be continued.
        locked: whether this run has already locked the folder; if not, the file is locked until `cleanup` ends.

    Raises:
        DiskError: another run is writing it, or its name is taken.
        OSError: it cannot be created.
    """
    partial = output.partial
    inode: int | None = None

    def end(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not (keep is not None and issubclass(kind, keep)):
            discard(partial, inode=inode, beside=journal_files(partial))

    cleanup.push(end)
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if partial.is_symlink() or (partial.exists() and not partial.is_file()):
            raise DiskError(f"{partial} is in the way", "remove it, or choose another name") from error
        raise
    with ExitStack() as opened:
        opened.callback(os.close, handle)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DiskError(f"{partial} is in the way", "remove it, or choose another name")
        if not locked:
            if not lock(handle, partial):
                raise DiskError(f"{output.path} is being written by another run", "wait for it, or choose another name")
            # The lock lasts as long as the handle.
            cleanup.push(opened.pop_all())
        inode = os.fstat(handle).st_ino
        entry = output.entry()
        if entry is None:
            if any(path.exists() for path in journal_files(partial)):
                remove_journal(partial)
                # A journal that came back after a power cut would speak of data that is gone.
                sync_folder(partial.parent)
            with naming(output.path):
                os.ftruncate(handle, 0)
                os.ftruncate(handle, output.plan.size)
    file = GrowingFile(output.path, partial, inode)
    file.write(memoryview(output.plan.header), 0)
    return file, entry.done if entry else Done(output.plan.job_count)
