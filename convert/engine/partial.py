"""An output is written as NAME.partial in the same folder, locked by the run that writes it, and renamed when it is
complete."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mconv.convert.errors import DiskError

PARTIAL = ".partial"
"""The suffix of files and folders that are still being written."""

# linux/fcntl.h and linux/fs.h.
_AT_FDCWD, _NO_REPLACE, _EXCHANGE = -100, 1, 2


def partial_path(path: Path) -> Path:
    """The name of a file or folder while it is written."""
    return path.parent / f"{path.name}{PARTIAL}"


def lock(handle: int, path: Path) -> bool:
    """Lock an open file or folder for this run, until it is closed.

    Returns:
        False if another run has locked it, or has just given it its final name.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file name to errors of the operating system; the error of a full disk has none by itself."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def give_name(handle: int, partial: Path, path: Path, *, overwrite: bool) -> None:
    """Give a complete file or folder its final name, provided that it is still the one that this run wrote.

    Args:
        handle: an open handle to the file or folder that was written.
        overwrite: whether to replace an existing file or folder of that name.

    Raises:
        DiskError: another process has replaced one of them.
        OSError: it cannot be renamed.
    """
    _check_own(handle, partial)
    if overwrite:
        partial.replace(path)
    else:
        rename_new(partial, path)
    _check_own(handle, path)


def _check_own(handle: int, path: Path) -> None:
    try:
        own = os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        own = False
    if not own:
        raise DiskError(
            f"{path} is not the file that was written: another process replaced it during the run",
            "make sure that no other process writes there, and run the command again",
        )


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or folder, unless the new name exists.

    Raises:
        DiskError: the new name exists.
        OSError: renaming failed.
    """
    try:
        if not _rename(source, target, _NO_REPLACE):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            source.rename(target)
    except FileExistsError as error:
        raise DiskError(
            f"{target} was created by another process during the run", "choose another name, or pass --overwrite"
        ) from error


def exchange(new: Path, old: Path) -> None:
    """Exchange the names of two folders: at every moment one of them has the name of the old folder.

    If the file system cannot do this in one step, the old folder is moved aside for a moment.

    Raises:
        OSError: renaming failed.
    """
    if not _rename(new, old, _EXCHANGE):
        aside = old.parent / f"{old.name}.replaced"
        old.rename(aside)
        new.rename(old)
        aside.rename(new)


def _rename(source: Path, target: Path, flags: int) -> bool:
    """Call renameat2(2); False if the system or the file system does not support it."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


def discard(partial: Path, *, inode: int | None = None, beside: Iterable[Path] = ()) -> None:
    """Remove a partial file if it exists and no other run has locked it.

    An interrupt can arrive between any two steps of its creation; this works after any of them.

    Args:
        inode: the inode of the file, if known: a different file in its place is kept.
        beside: files to remove with it, such as its journal.
    """
    try:
        # Do not follow a link, and do not wait for a pipe, that was put in its place.
        handle = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        status = os.fstat(handle)
        if stat.S_ISREG(status.st_mode) and inode in (None, status.st_ino) and lock(handle, partial):
            partial.unlink(missing_ok=True)
            for path in beside:
                path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def discard_folder(partial: Path) -> None:
    """Remove a partial folder if it exists and no other run has locked it."""
    try:
        handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if lock(handle, partial):
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk.

    Raises:
        OSError: syncing failed.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
