"""What a library tells whoever uses it: notes and progress, as callbacks; and sizes as people read and write them.

Nothing below the command lines prints. A command line listens on the terminal, a program with functions of its own;
where nobody listens, nothing is told.
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
        """So many more are done; the detail, if any, is worth showing beside it."""


class _NoBar:
    def update(self, count: int, detail: str = "") -> None:
        """Nobody looks."""


@dataclass(frozen=True)
class Listener:
    """Who is told.

    Attributes:
        note: takes a line that is worth knowing.
        warn: takes a line that says what is not as it should be, though it is not an error.
        bar: makes the progress through something, given its size, what it is, and the unit of its size: "B" for bytes;
            the context is left when it is through.
    """

    note: Callable[[str], object] = lambda _: None
    warn: Callable[[str], object] = lambda _: None
    bar: Callable[[int, str, str], AbstractContextManager[Bar]] = lambda *_: nullcontext(_NoBar())


_listeners = [Listener()]


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have a listener be told for as long as the block runs.

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
    """Tell something that is worth knowing."""
    _listeners[-1].note(text)


def warn(text: str) -> None:
    """Tell what is not as it should be, though it is not an error."""
    _listeners[-1].warn(text)


def progress_bar(total: int, what: str, unit: str = "B") -> AbstractContextManager[Bar]:
    """Progress through something, to be used in a `with` block.

    Args:
        total: its size.
        what: what it is, such as the name of a file.
        unit: of the size: "B" for bytes, "tok" for tokens.
    """
    return _listeners[-1].bar(total, what, unit)


def parse_bytes(text: str) -> int:
    """A size as people write it, in decimal units: 5GB, 500MB, 1.5GB, 1000000.

    Raises:
        UsageError: it is not a size, or zero.

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
    """A size for people, in the decimal units that file listings use.

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
    """A text without the halves of characters that stand for odd bytes in a file's name."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
