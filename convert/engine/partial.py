"""An output grows as NAME.partial beside its place, locked by the run that writes it, and gets its name when it is
whole."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mconv.convert.errors import DiskError

PARTIAL = ".partial"
"""What is added to the name of what grows."""


def partial_path(path: Path) -> Path:
    """The name of a file or folder while it grows."""
    return path.parent / f"{path.name}{PARTIAL}"


def lock(handle: int, path: Path) -> bool:
    """Take an open file or folder for this run, until it is closed.

    Returns:
        False where another run has it, or had it and has just given it its final name.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the operating system say which file it is about; that of a full disk does not by itself."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def discard(partial: Path, *, folder: bool = False) -> None:
    """Remove what grew, if it is there and no other run has it.

    An interrupt may come between any two steps of making it: how far they came need not be known.

    Args:
        folder: whether it is a folder; what is of another kind than expected stays.
    """
    try:
        # Neither a link nor a pipe that somebody put there is followed or waited for.
        handle = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        mode = os.fstat(handle).st_mode
        if not lock(handle, partial):
            return
        if folder and stat.S_ISDIR(mode):
            shutil.rmtree(partial, ignore_errors=True)
        elif not folder and stat.S_ISREG(mode):
            partial.unlink(missing_ok=True)
    finally:
        os.close(handle)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """The folder under its partial name, empty, to be filled; at the end it takes the place of what is there.

    Args:
        folder: no link, see `Path.resolve`.

    Raises:
        DiskError: another run writes it, or something else stands in the way.
        OSError: it cannot be made or renamed.
    """
    partial, old = partial_path(folder), folder.exists()
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise DiskError(f"{partial} is in the way", "remove it, or choose another name")
    try:
        partial.mkdir(exist_ok=True)
        handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if not lock(handle, partial):
                raise DiskError(f"{folder} is being written by another run", "wait for it, or choose another name")
            _empty(partial)
            yield partial
            # What was made there meanwhile is nobody's to remove: the rename is refused then.
            if old:
                shutil.rmtree(folder)
            partial.rename(folder)
        finally:
            os.close(handle)
        sync_folder(folder.parent)
    except BaseException:
        discard(partial, folder=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last.

    Raises:
        OSError: syncing failed.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    """Remove what a killed run left."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
