"""How the library reports to its caller: notes and progress, as callbacks. Also sizes as people read and write them.

Only the command lines print. A command line prints reports on the terminal; a program passes its own functions. Without
a listener, reports are discarded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from mconv.convert.errors import UsageError


class Bar(Protocol):
    """Progress through something of a known size."""

    def update(self, count: int, detail: str = "") -> object:
        """Advance by `count`; show the detail, if any, beside the bar."""


class _NoBar:
    def update(self, count: int, detail: str = "") -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Listener:
    """Callbacks that receive reports.

    Attributes:
        note: receives one line of information.
        warn: receives one line about something that is wrong but is not an error.
        bar: creates a progress bar, given the total, a label, and the unit of the total, such as "B" for bytes; its
            context ends when the work is complete.
    """

    note: Callable[[str], object] = lambda _: None
    warn: Callable[[str], object] = lambda _: None
    bar: Callable[[int, str, str], AbstractContextManager[Bar]] = lambda *_: nullcontext(_NoBar())


_listeners = [Listener()]


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send reports to a listener while the block runs.

    Example:
        >>> heard = []
        >>> with listening(Listener(note=heard.append)):
        ...     note("left out 3 tensors")
        >>> heard
        ['left out 3 tensors']
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def note(text: str) -> None:
    """Report one line of information."""
    _listeners[-1].note(text)


def warn(text: str) -> None:
    """Report something that is wrong but is not an error."""
    _listeners[-1].warn(text)


def progress_bar(total: int, what: str, unit: str = "B") -> AbstractContextManager[Bar]:
    """A progress bar, to be used in a `with` block.

    Args:
        total: the total amount of work.
        what: a label, such as the name of a file.
        unit: the unit of the total: "B" for bytes, "tok" for tokens.
    """
    return _listeners[-1].bar(total, what, unit)


def parse_bytes(text: str) -> int:
    """Parse a size in decimal units: 5GB, 500MB, 1.5GB, 1000000.

    Raises:
        UsageError: it is not a size, or it is zero.

    Example:
        >>> parse_bytes("1.5GB")
        1500000000
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size < 1:
        raise UsageError(f"{text!r} is not a valid size", "write it as 5GB or 500MB")
    return size


def format_bytes(count: int) -> str:
    """Format a size in the decimal units that file listings use.

    Example:
        >>> format_bytes(14_300_000_000)
        '14.30 GB'
    """
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def printable(text: str) -> str:
    """The text without the surrogates that Python uses for undecodable bytes in a file name."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
