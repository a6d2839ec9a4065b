"""Source files: values that name a file, opened in each process on the first read.

A checkpoint may have thousands of files, more than a process may open. So only a few are open at a time; the least
recently read one is closed first.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from mconv.convert.errors import SourceError
from mconv.convert.tensors.plain import plain

# More would not be faster: jobs read files from front to back, a few at a time.
_MOST_OPEN = 64


@plain
@dataclass(frozen=True)
class SourceFile:
    """A file as it was when its header was read; any number of threads and processes can read it.

    Attributes:
        path: absolute path.
        size: size in bytes.
        mtime_ns: time of the last modification. Together with the size, it shows whether the file has changed.
    """

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, path: Path) -> SourceFile:
        """The file at this path.

        Raises:
            OSError: there is no such file.
        """
        status = path.stat()
        return cls(path.absolute(), status.st_size, status.st_mtime_ns)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer from the offset.

        Raises:
            SourceError: the file ends before the buffer is full, or it has changed.
            OSError: it cannot be read; includes the file name.
        """
        done = 0
        with _sources.handle(self) as handle:
            while done < len(buffer):
                try:
                    count = os.preadv(handle, [buffer[done:]], offset + done)
                except OSError as error:
                    error.filename = str(self.path)
                    raise
                if count == 0:
                    raise SourceError(
                        f"{self.path.name}: the file ends at byte {offset + done}, inside a tensor",
                        "the file was truncated while it was read; download or copy it again",
                    )
                done += count

    def check_unchanged(self) -> None:
        """Check that the file has not changed since its header was read.

        Raises:
            SourceError: it was modified or replaced.
            OSError: it no longer exists.
        """
        self.check(self.path.stat())

    def check(self, status: os.stat_result) -> None:
        """Compare the status of the file with its recorded size and time; see `check_unchanged`."""
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise SourceError(
                f"{self.path.name} changed while it was read",
                "run the command again, and do not change the source while it runs",
            )


_K = TypeVar("_K", bound=Hashable)


class HandleCache(Generic[_K]):
    """The open handles of this process to files of one kind: at most a few, least recently used first.

    Args:
        open_file: opens the file of a key.
    """

    def __init__(self, open_file: Callable[[_K], int]) -> None:
        self._open_file = open_file
        self._lock = threading.Lock()
        self._handles: OrderedDict[_K, int] = OrderedDict()
        self._users: dict[_K, int] = {}

    @contextmanager
    def handle(self, key: _K) -> Iterator[int]:
        """The handle of a file, which stays open while the block runs.

        Raises:
            OSError: it cannot be opened.
        """
        with self._lock:
            handle = self._handles.get(key)
            if handle is None:
                self._close_idle(len(self._handles) + 1 - _most_open())
                handle = self._handles[key] = self._open_file(key)
            self._handles.move_to_end(key)
            self._users[key] = self._users.get(key, 0) + 1
        try:
            yield handle
        finally:
            with self._lock:
                self._users[key] -= 1
                if not self._users[key]:
                    del self._users[key]

    def close(self) -> None:
        """Close every handle that is not in use."""
        with self._lock:
            self._close_idle(len(self._handles))

    def _close_idle(self, count: int) -> None:
        for key in [key for key in self._handles if key not in self._users][: max(0, count)]:
            os.close(self._handles.pop(key))


def _most_open() -> int:
    return min(_MOST_OPEN, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


def _open_source(file: SourceFile) -> int:
    # Without O_NONBLOCK, opening a pipe that has replaced the file would block.
    handle = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        file.check(os.fstat(handle))
    except BaseException:
        os.close(handle)
        raise
    return handle


_sources = HandleCache(_open_source)


def close_sources() -> None:
    """Close the files that were read; they are opened again on the next read."""
    _sources.close()
