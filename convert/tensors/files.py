"""Files that rows are read from: values that name a file, opened in each process when it is first read.

A checkpoint may have thousands of files, and a process may open only so many. So at most a few are open at a time; the
one that has not been read for longest is closed first.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mconv.convert.errors import SourceError

# More would speed nothing up: jobs read files from front to back, a few at a time.
_MOST_OPEN = 64


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when its header was read; any number of threads and processes may read it.

    Attributes:
        path: absolute.
        size: in bytes.
        mtime_ns: when it was last written to. With the size, it tells whether the file is still the same one.
    """

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, path: Path) -> SourceFile:
        """The file at this path.

        Raises:
            OSError: there is none.
        """
        status = path.stat()
        return cls(path.absolute(), status.st_size, status.st_mtime_ns)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer from the offset.

        Raises:
            SourceError: the file ends before the buffer is full, or is another one than it was.
            OSError: it cannot be read; with the file's name.
        """
        done = 0
        with _open_files.handle(self) as handle:
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
        """Hold the file against what it was when its header was read.

        Raises:
            SourceError: it was written to, or another file has taken its place.
            OSError: it is gone.
        """
        self._check(self.path.stat())

    def _check(self, status: os.stat_result) -> None:
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise SourceError(
                f"{self.path.name} changed while it was read",
                "leave the source alone until the command has ended, then run it again",
            )


class _OpenFiles:
    """The handles of this process, least recently used first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handles: OrderedDict[SourceFile, int] = OrderedDict()
        self._users: dict[SourceFile, int] = {}

    @contextmanager
    def handle(self, file: SourceFile) -> Iterator[int]:
        """A handle to read the file with, which stays open for as long as the block runs."""
        with self._lock:
            handle = self._handles.get(file)
            if handle is None:
                handle = self._open(file)
            self._handles.move_to_end(file)
            self._users[file] = self._users.get(file, 0) + 1
        try:
            yield handle
        finally:
            with self._lock:
                self._users[file] -= 1
                if not self._users[file]:
                    del self._users[file]

    def _open(self, file: SourceFile) -> int:
        limit = min(_MOST_OPEN, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        idle = [held for held in self._handles if held not in self._users]
        for held in idle[: max(0, len(self._handles) + 1 - limit)]:
            os.close(self._handles.pop(held))
        # Without O_NONBLOCK, a pipe that took the file's place would be waited for.
        handle = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            file._check(os.fstat(handle))
        except BaseException:
            os.close(handle)
            raise
        self._handles[file] = handle
        return handle


_open_files = _OpenFiles()
