"""Keep the journals of a run: sync the written data, then record which jobs are done, in parallel with the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Protocol

from mconv.convert.engine.journal import Done, Entry, journal_path, write_journal
from mconv.convert.engine.outputs import GrowingFile

# A killed run loses at most the work of these seconds, plus the time that the previous sync took.
_SECONDS = 0.1
_MOST_SECONDS = 2.0
# Syncing takes at most this share of the time, because the disk is needed for the data itself.
_SHARE = 1 / 4


class Finished(Protocol):
    """A job that is done: the index of its output, and its own."""

    @property
    def file(self) -> int: ...
    @property
    def job(self) -> int: ...


class JournalKeeper:
    """The journals of partial files, to be used in a `with` block. At its end they contain every job that is done.

    Args:
        files: the partial files.
        digests: the digests of their plans.
        done: the jobs of each that are already done.
        keep: an error after which the files are kept, to be continued; after any other error they are removed.
    """

    def __init__(
        self,
        files: Sequence[GrowingFile],
        digests: Sequence[str],
        done: Sequence[Done],
        keep: type[BaseException] | None = None,
    ) -> None:
        self._files = files
        self._keep_after = keep
        self._digests = digests
        self._done = done
        self._new: set[int] = set()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._keep, name="journal", daemon=True)

    def record(self, jobs: Iterable[Finished]) -> None:
        """Record jobs whose data has been written.

        Raises:
            OSError: data written earlier could not be synced.
        """
        with self._lock:
            for job in jobs:
                self._done[job.file].add(job.job)
                self._new.add(job.file)
        if self._error is not None:
            raise self._error

    def finish(self, *, write_down: bool) -> None:
        """Sync every file.

        Args:
            write_down: whether the journals say that the files are whole: they are to get their names one by one, and a
                run that is killed meanwhile is to go on with those that have none.

        Raises:
            OSError: syncing failed.
        """
        self._stop()
        if self._error is not None:
            raise self._error
        for number, file in enumerate(self._files):
            status = file.sync()
            if write_down:
                self._write(number, self._done[number], status.st_mtime_ns)
        self._new.clear()

    def __enter__(self) -> JournalKeeper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        kept = kind is not None and self._keep_after is not None and issubclass(kind, self._keep_after)
        if kept and self._error is None:
            self._flush()

    def _stop(self) -> None:
        self._ending.set()
        self._thread.join()

    def _keep(self) -> None:
        pause = _SECONDS
        while not self._ending.wait(pause):
            started = time.monotonic()
            try:
                self._flush()
            except BaseException as error:
                # The operating system reports lost data only once: the run must stop.
                self._error = error
                return
            # A young run has little to lose, and a short one is over soon: the first syncs come early.
            pause = min(2 * pause, _MOST_SECONDS)
            pause = max(pause, (time.monotonic() - started) / _SHARE)

    def _flush(self) -> None:
        with self._lock:
            new, self._new = self._new, set()
            done = {number: Done(self._done[number].count, self._done[number].to_bytes()) for number in new}
        for number, jobs in done.items():
            self._files[number].sync_data()
            self._write(number, jobs, None)

    def _write(self, number: int, done: Done, changed_ns: int | None) -> None:
        file = self._files[number]
        write_journal(journal_path(file.partial), Entry(self._digests[number], done, file.inode, changed_ns))
