"""Plain data: the dataclasses that a plan is made of, so that it goes to JSON and back.

`@plain` on a frozen dataclass makes its name known; nothing else is ever made from a text that was read.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import TypeVar

from mconv.convert.errors import FormatError

_T = TypeVar("_T", bound=type)
_PACKAGE = "mconv."
_classes: dict[str, type] = {}


def plain(cls: _T) -> _T:
    """Let instances of a frozen dataclass be part of a plan."""
    _classes[plain_name(cls)] = cls
    return cls


def plain_name(cls: type) -> str:
    """The name of a class in a plan: its module, and its own."""
    return f"{cls.__module__}:{cls.__qualname__}"


def is_plain(cls: type) -> bool:
    """Whether instances of the class may be part of a plan."""
    return _classes.get(plain_name(cls)) is cls


def plain_class(name: str) -> type:
    """The class of this name; a module of this package is imported for it.

    Raises:
        FormatError: there is none that may be part of a plan.
    """
    if name not in _classes and name.startswith(_PACKAGE):
        with suppress(ImportError):
            import_module(name.partition(":")[0])
    if name not in _classes:
        raise FormatError(f"unknown part of a plan: {name[:80]!r}", "make the plan anew with this version")
    return _classes[name]
