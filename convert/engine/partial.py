"""An output grows as NAME.partial beside its place, locked by the run that writes it, and gets its name when it is
whole."""

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
"""What is added to the name of what grows."""

# linux/fcntl.h and linux/fs.h.
_AT_FDCWD, _NO_REPLACE, _EXCHANGE = -100, 1, 2


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


def give_name(handle: int, partial: Path, path: Path, *, overwrite: bool) -> None:
    """Rename what grew to what it is, provided that it is still what this run wrote.

    Args:
        handle: an open handle to what was written.
        overwrite: whether something of that name may be replaced.

    Raises:
        DiskError: something else has taken the place of either.
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
            f"{path} is not the file that was written: something took its place during the run",
            "let nothing else write there, and run the command again",
        )


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or folder, unless something of the new name exists.

    Raises:
        DiskError: it does.
        OSError: renaming failed.
    """
    try:
        if not _rename(source, target, _NO_REPLACE):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            source.rename(target)
    except FileExistsError as error:
        raise DiskError(
            f"{target} was made by something else during the run", "choose another name, or pass --overwrite"
        ) from error


def exchange(new: Path, old: Path) -> None:
    """Let two folders change names: at every moment either of them has the old one's.

    Where the file system cannot do that in one step, the old one is moved aside for a moment.

    Raises:
        OSError: renaming failed.
    """
    if not _rename(new, old, _EXCHANGE):
        aside = old.parent / f"{old.name}.replaced"
        old.rename(aside)
        new.rename(old)
        aside.rename(new)


def _rename(source: Path, target: Path, flags: int) -> bool:
    """renameat2(2); False where the system or the file system lacks it."""
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
    """Remove a file that grew, if it is there and no other run has it.

    An interrupt may come between any two steps of making it: how far they came need not be known.

    Args:
        inode: of the file, where it is known: another file that has taken its place stays.
        beside: what goes with it.
    """
    try:
        # Neither a link nor a pipe that somebody put there is followed or waited for.
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
    """Remove a folder that grew, if it is there and no other run has it."""
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
    """Make the names in a folder last.

    Raises:
        OSError: syncing failed.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
