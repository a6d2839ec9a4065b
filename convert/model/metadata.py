"""Metadata as typed values, as stored in a GGUF header.

The types and their numbers are those of the GGUF specification (ggml docs/gguf.md, `gguf_metadata_value_type`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class ValueType(IntEnum):
    """The type of one metadata value, numbered as in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


@dataclass(frozen=True)
class Value:
    """One metadata value.

    Attributes:
        type: the type in the file.
        content: bool, int, float, str (or bytes, for a string that is not UTF-8), or a list of these for ARRAY.
        item_type: the type of the items, for ARRAY only.
    """

    type: ValueType
    content: Any
    item_type: ValueType | None = None


Metadata = dict[str, Value]
"""Key to value, in the order of the file."""


def uint32(content: int) -> Value:
    """An unsigned 32-bit integer."""
    return Value(ValueType.UINT32, int(content))


def float32(content: float) -> Value:
    """A 32-bit float."""
    return Value(ValueType.FLOAT32, float(content))


def boolean(content: bool) -> Value:
    """A boolean."""
    return Value(ValueType.BOOL, bool(content))


def string(content: str) -> Value:
    """A UTF-8 string."""
    return Value(ValueType.STRING, content)


def array(item_type: ValueType, content: Sequence[Any]) -> Value:
    """A list of values of one type."""
    return Value(ValueType.ARRAY, list(content), item_type)
