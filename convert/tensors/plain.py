"""Plain data: the dataclasses that make up a plan, so that it can be converted to JSON and back.

`@plain` on a frozen dataclass or an enum makes its name known; nothing else is ever made from a text that was read.

In a text, every value stands once in a list, after those that it refers to, however often it is used: a thousand layers
that are slices of one stack do not repeat the stack. Reading is one pass over that list.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from contextlib import suppress
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from mconv.convert.errors import FormatError

_T = TypeVar("_T", bound=type)
_PACKAGE = "mconv."
_classes: dict[str, type] = {}

Objects = list[list[Any]]
"""Each value as the name of its class and its fields, which JSON can hold."""


def plain(cls: _T) -> _T:
    """Let instances of a frozen dataclass, or members of an enum, be part of a plan."""
    _classes[_name(cls)] = cls
    return cls


class PlainWriter:
    """Lists the parts of a value, each once.

    Attributes:
        places: every part, and its place in the list.
    """

    def __init__(self) -> None:
        self.places: dict[Any, int] = {}
        self._objects: Objects = []
        # Values are compared by what they hold, which takes a while for large ones: those that were seen are known.
        self._seen: dict[int, int] = {}

    def write(self, value: Any) -> Objects:
        """The parts of a value; itself is the last.

        Raises:
            TypeError: a part is of a class that is not plain data.
        """
        self._place(value)
        return self._objects

    def _place(self, value: Any) -> int:
        if id(value) in self._seen:
            return self._seen[id(value)]
        place = self.places.get(value)
        if place is None:
            cls = type(value)
            if _classes.get(_name(cls)) is not cls:
                raise TypeError(f"{cls.__qualname__} cannot be part of a plan: it is not registered as plain data")
            entry = [_name(cls), *(self._encode(getattr(value, field.name)) for field in dataclasses.fields(cls))]
            place = self.places[value] = len(self._objects)
            self._objects.append(entry)
        self._seen[id(value)] = place
        return place

    def _encode(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, tuple):
            return [self._encode(item) for item in value]
        if isinstance(value, bytes):
            return {"bytes": base64.b64encode(value).decode("ascii")}
        if isinstance(value, Path):
            return {"path": str(value)}
        if isinstance(value, Enum):
            return {"member": f"{_name(type(value))}.{value.name}"}
        return {"at": self._place(value)}


def read_plain(objects: Any) -> Any:
    """The value that `PlainWriter.write` listed the parts of.

    Raises:
        FormatError: the list was edited or cut off, or names a class that is not plain data.
    """
    found: list[Any] = []
    try:
        for name, *fields in objects:
            cls = _class(name)
            if not dataclasses.is_dataclass(cls) or len(fields) != len(dataclasses.fields(cls)):
                raise ValueError(f"{name[:80]} with {len(fields)} values")
            found.append(cls(*(_decode(value, found) for value in fields)))
        return found[-1]
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError, binascii.Error) as error:
        raise FormatError(
            f"the plan is damaged ({error})", "make the plan anew; plans are not to be edited by hand"
        ) from error


def _decode(value: Any, found: list[Any]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, found) for item in value)
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        match kind:
            case "at":
                return found[content if type(content) is int and content >= 0 else len(found)]
            case "bytes":
                return base64.b64decode(content, validate=True)
            case "path":
                return Path(content)
            case "member":
                name, _, member = content.rpartition(".")
                members: Any = _class(name)
                return members[member]
        raise ValueError(f"unknown value {str(kind)[:40]!r}")
    return value


def _name(cls: type) -> str:
    """The name of a class in a plan: its module, and its own."""
    return f"{cls.__module__}:{cls.__qualname__}"


def _class(name: str) -> type:
    """The class of this name; a module of this package is imported for it."""
    if name not in _classes and name.startswith(_PACKAGE):
        with suppress(ImportError):
            import_module(name.partition(":")[0])
    if name not in _classes:
        raise FormatError(f"unknown part of a plan: {name[:80]!r}", "make the plan again with this version")
    return _classes[name]
