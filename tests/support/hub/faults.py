"""What goes wrong, where and how often: told by the test, asked by the server at each request."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["status", "page", "drop", "lost", "cut", "slow", "corrupt", "call", "call-after"]


@dataclass
class Fault:
    """One thing that goes wrong.

    Attributes:
        route: regular expression searched in `METHOD /path`.
        kind:
            status: the answer is an error, and nothing is done.
            page: the same, and the answer is a page of some gateway in between.
            drop: `action` is called and the connection goes away in the middle of the request's body; nothing is done.
            lost: it is done, and the connection goes away before the answer.
            cut: it is done, and the connection goes away in the middle of the answer's body.
            slow: the body is taken in at `rate` bytes a second.
            corrupt: a byte of what is uploaded is kept wrong.
            call, call-after: `action` is called before the request is looked at, or when it is done and before the
                answer.
        times: how often.
        after: how many matching requests pass before.
    """

    route: str
    kind: Kind
    times: int = 1
    after: int = 0
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    rate: int = 1_000_000
    action: Callable[[], object] = lambda: None


class FaultPlan:
    """The faults that are still to come. Several threads ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, *faults: Fault) -> None:
        """Something more goes wrong from now on."""
        with self._lock:
            self._faults.extend(faults)

    def clear(self) -> None:
        """Nothing goes wrong from now on."""
        with self._lock:
            self._faults.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """What goes wrong with this request."""
        with self._lock:
            for fault in self._faults:
                if not re.search(fault.route, f"{method} {path}") or not fault.times:
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None
