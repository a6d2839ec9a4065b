"""The wire format of protocol buffers, both ways, as far as a SentencePiece file needs it.

Format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

_VARINT, _BYTES, _FIXED32 = 0, 2, 5


def read_fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: int for a varint, else bytes.

    Raises:
        ValueError, IndexError: the message is damaged.
    """
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        wire = key & 7
        value: int | bytes
        if wire == _VARINT:
            value, position = _read_varint(message, position)
        else:
            if wire == _BYTES:
                size, position = _read_varint(message, position)
            elif wire in (1, _FIXED32):
                size = 8 if wire == 1 else 4
            else:
                raise ValueError(f"wire type {wire}")
            value = message[position : position + size]
            position += size
            if position > len(message):
                raise ValueError("a field ends after the message")
        yield key >> 3, value


def write_fields(fields: Iterable[tuple[int, int | float | str | bytes]]) -> bytes:
    """A message: integers from 0 on as varints, floats in 32 bits, texts and bytes with their length before them."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts += [_write_varint(number << 3 | _VARINT), _write_varint(value)]
        elif isinstance(value, float):
            parts += [_write_varint(number << 3 | _FIXED32), struct.pack("<f", value)]
        else:
            data = value.encode("utf-8") if isinstance(value, str) else value
            parts += [_write_varint(number << 3 | _BYTES), _write_varint(len(data)), data]
    return b"".join(parts)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def _write_varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    data.append(value)
    return bytes(data)
