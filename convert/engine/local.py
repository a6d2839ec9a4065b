"""The local executor: a pool of threads, each working on one task."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mconv.convert.engine.threads import default_threads

_T = TypeVar("_T")


class Executor(Protocol):
    """Runs tasks that do not depend on each other.

    Work and tasks are plain data, so that another process or machine can run them.
    """

    def carry_out(self, work: Callable[[_T], object], tasks: Iterable[_T]) -> Iterator[_T]:
        """Run the work for every task, a few at a time, and yield each task when it is done, in any order.

        The first error stops the run: tasks that have not started are not run.
        """


@dataclass(frozen=True)
class LocalExecutor:
    """Threads of this process.

    Attributes:
        threads: how many tasks run at once; None for every usable core.
    """

    threads: int | None = None

    def carry_out(self, work: Callable[[_T], object], tasks: Iterable[_T]) -> Iterator[_T]:
        """See `Executor`. A short queue keeps every thread busy, and lets an error or Ctrl-C stop all of them soon."""
        threads = self.threads or default_threads()
        stopped = threading.Event()

        def do(task: _T) -> _T:
            if not stopped.is_set():
                work(task)
            return task

        pending: set[Future[_T]] = set()
        with ThreadPoolExecutor(threads) as pool:
            try:
                for task in tasks:
                    pending.add(pool.submit(do, task))
                    while len(pending) >= 2 * threads:
                        done, pending = wait(pending, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                while pending:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            finally:
                stopped.set()
