"""The GGUF container: read and write its header, without trusting any length in it.

Format: ggml docs/gguf.md, version 3, little-endian: magic, version, number of tensors, number of key-value pairs, the
pairs, the tensors' names, shapes, types and offsets, then the data, each tensor aligned.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.engine.plan import Plan, TypedTarget, padded, place_tensors
from mconv.convert.errors import FormatError, SourceError
from mconv.convert.model.metadata import Metadata, Value, ValueType
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.files import SourceFile
from mconv.convert.tensors.nodes import FileTensor, row_count

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32

_SCALARS = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}
_UINT32 = _SCALARS[ValueType.UINT32]
_UINT64 = _SCALARS[ValueType.UINT64]
_TYPES = {block.number: block for block in BlockType}
_MAX_DIMENSIONS = 4
# ggml's GGML_MAX_NAME, including the terminating zero.
_MAX_NAME_BYTES = 64
_READ_AHEAD = 1 << 20


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header lists it.

    Attributes:
        shape: slowest axis first, as in numpy; the file has the opposite order.
        offset: bytes from the start of the data section.
    """

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row along the fastest axis."""
        return self.type.row_bytes(self.shape[-1])

    @property
    def size(self) -> int:
        """Bytes of the whole tensor, without padding."""
        return math.prod(self.shape[:-1]) * self.row_bytes


def lay_out(metadata: Metadata, typed: Sequence[TypedTarget], alignment: int = DEFAULT_ALIGNMENT) -> Plan:
    """The plan of a GGUF file: every tensor gets its place, in the given order.

    Args:
        metadata: key-value pairs in the order of the file.
        typed: each tensor with the name of its block type.
        alignment: every tensor starts at a multiple of this many bytes.

    Raises:
        QuantizationError: a row is not whole blocks of its type.
        FormatError: a tensor name that GGUF cannot hold.
    """
    tensors = place_tensors(typed, alignment)
    listed = [
        TensorInfo(tensor.target.name, tensor.target.shape, BlockType[tensor.encoding], tensor.planes[0].offset)
        for tensor in tensors
    ]
    header = encode_header(metadata, listed, alignment)
    return Plan(header, tensors, len(header) + sum(padded(tensor.size, alignment) for tensor in tensors))


def encode_header(metadata: Metadata, tensors: list[TensorInfo], alignment: int = DEFAULT_ALIGNMENT) -> bytes:
    """Everything before the data, including padding.

    Raises:
        FormatError: a tensor name that GGUF cannot hold.
    """
    parts = [MAGIC, _UINT32.pack(VERSION), _UINT64.pack(len(tensors)), _UINT64.pack(len(metadata))]
    for key, value in metadata.items():
        parts += [_encode_string(key), _UINT32.pack(value.type), _encode_value(key, value)]
    for tensor in tensors:
        if len(tensor.name.encode()) >= _MAX_NAME_BYTES:
            raise FormatError(
                f"tensor name {tensor.name} is too long for GGUF", f"use a name of at most {_MAX_NAME_BYTES - 1} bytes"
            )
        parts.append(_encode_string(tensor.name))
        parts.append(_UINT32.pack(len(tensor.shape)))
        parts += [_UINT64.pack(axis) for axis in reversed(tensor.shape)]
        parts.append(_UINT32.pack(tensor.type.number) + _UINT64.pack(tensor.offset))
    header = b"".join(parts)
    return header.ljust(padded(len(header), alignment), b"\0")


def _encode_string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    return _UINT64.pack(len(data)) + data


def _encode_value(key: str, value: Value) -> bytes:
    try:
        return _encode(value)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise FormatError(
            f"{key}: {str(value.content)[:80]!a} cannot be stored as {value.type.name}",
            "check the configuration of the checkpoint",
        ) from error


def _encode(value: Value) -> bytes:
    if value.type is ValueType.STRING:
        return _encode_string(value.content)
    if value.type is not ValueType.ARRAY:
        return _SCALARS[value.type].pack(value.content)
    kind = value.item_type
    if kind is None or kind is ValueType.ARRAY:
        raise FormatError("GGUF metadata cannot hold an array of arrays here", "store flat arrays only")
    head = _UINT32.pack(kind) + _UINT64.pack(len(value.content))
    if kind is ValueType.STRING:
        return head + b"".join(map(_encode_string, value.content))
    return head + struct.pack(f"<{len(value.content)}{_SCALARS[kind].format[1:]}", *value.content)


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file: metadata, and tensors whose data has not been read."""

    metadata: Metadata
    tensors: tuple[FileTensor, ...]
    alignment: int


def read_gguf(path: Path, file_number: int = 0) -> GgufFile:
    """Read a header.

    Args:
        path: the file.
        file_number: its number among the files of a split model, recorded in the position of each tensor.

    Raises:
        SourceError: the file is missing or shorter than its header claims.
        FormatError: it breaks the rules of the format.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file", "give the path of a GGUF file")
    return _Reader(SourceFile.at(path)).read(file_number)


class _Reader:
    """A cursor over the header; compares every length with the rest of the file before it allocates memory."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._name = file.path.name
        self._buffer = b""
        self._start = 0
        self._cursor = 0

    def read(self, file_number: int) -> GgufFile:
        if self._file.size < 4 or self._take(4) != MAGIC:
            raise FormatError(f"{self._name} is not a GGUF file", "give the path of a GGUF file")
        version = self._integer(_UINT32)
        if version not in (2, 3):
            raise FormatError(
                f"{self._name}: GGUF version {version}", "only versions 2 and 3, little-endian, are supported"
            )
        tensor_count, pair_count = self._integer(_UINT64), self._integer(_UINT64)
        # The smallest size of a tensor or a pair in a header.
        self._check_room(tensor_count, 24, "tensors")
        self._check_room(pair_count, 13, "key-value pairs")
        metadata: Metadata = {}
        for _ in range(pair_count):
            key = self._text("key")
            if key in metadata:
                raise FormatError(f"{self._name}: key {key} occurs twice", "the file is damaged; download it again")
            metadata[key] = self._value(self._kind())
        infos = [self._tensor_info() for _ in range(tensor_count)]
        alignment = self._alignment(metadata)
        data_start = padded(self._cursor, alignment)
        return GgufFile(metadata, self._place(infos, data_start, alignment, file_number), alignment)

    def _place(
        self, infos: list[TensorInfo], data_start: int, alignment: int, file_number: int
    ) -> tuple[FileTensor, ...]:
        if len({info.name for info in infos}) != len(infos):
            raise FormatError(f"{self._name}: two tensors have the same name", "the file is damaged; download it again")
        for info in infos:
            if info.offset % alignment:
                raise FormatError(
                    f"{self._name}: tensor {info.name} is not aligned to {alignment} bytes", "download the file again"
                )
            if data_start + info.offset + info.size > self._file.size:
                raise SourceError(
                    f"{self._name}: tensor {info.name} ends at byte {data_start + info.offset + info.size}, "
                    f"the file has {self._file.size}",
                    "the file is truncated; download it again",
                )
        return tuple(
            FileTensor(
                name=info.name,
                dtype=info.type.name,
                shape=info.shape,
                file=self._file,
                offset=data_start + info.offset,
                row_bytes=info.size // row_count(info.shape) if info.size else 0,
                position=(file_number, place),
            )
            for place, info in enumerate(infos)
        )

    def _tensor_info(self) -> TensorInfo:
        name = self._text("tensor name")
        dimensions = self._integer(_UINT32)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise FormatError(f"{self._name}: tensor {name} has {dimensions} dimensions", "download the file again")
        shape = tuple(self._integer(_UINT64) for _ in range(dimensions))[::-1]
        number = self._integer(_UINT32)
        if number not in _TYPES:
            raise FormatError(
                f"{self._name}: tensor {name} has the unknown type number {number}",
                "the file may come from a newer llama.cpp; update mconv",
            )
        if 0 in shape or math.prod(shape) > 1 << 60 or not _TYPES[number].fits(shape[-1]):
            raise FormatError(
                f"{self._name}: tensor {name} has an impossible shape {list(shape)}", "download the file again"
            )
        return TensorInfo(name, shape, _TYPES[number], self._integer(_UINT64))

    def _alignment(self, metadata: Metadata) -> int:
        value = metadata.get("general.alignment")
        alignment = value.content if value else DEFAULT_ALIGNMENT
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 20:
            raise FormatError(f"{self._name}: alignment {alignment} is not a power of two", "download the file again")
        return alignment

    def _value(self, kind: ValueType) -> Value:
        if kind is ValueType.STRING:
            return Value(kind, self._string())
        if kind is not ValueType.ARRAY:
            return Value(kind, self._scalar(kind))
        item, count = self._kind(), self._integer(_UINT64)
        if item is ValueType.ARRAY:
            raise FormatError(
                f"{self._name}: an array of arrays in the metadata", "the file is damaged; download it again"
            )
        if item is ValueType.STRING:
            self._check_room(count, 8, "strings")
            return Value(kind, [self._string() for _ in range(count)], item)
        scalar = _SCALARS[item]
        self._check_room(count, scalar.size, "numbers")
        data = self._take(count * scalar.size)
        return Value(kind, list(struct.unpack(f"<{count}{scalar.format[1:]}", data)), item)

    def _kind(self) -> ValueType:
        number = self._integer(_UINT32)
        try:
            return ValueType(number)
        except ValueError as error:
            raise FormatError(f"{self._name}: unknown value type {number}", "download the file again") from error

    def _scalar(self, kind: ValueType) -> Any:
        scalar = _SCALARS[kind]
        return scalar.unpack(self._take(scalar.size))[0]

    def _text(self, what: str) -> str:
        text = self._string()
        if isinstance(text, bytes):
            raise FormatError(f"{self._name}: a {what} is not UTF-8", "the file is damaged; download it again")
        return text

    def _string(self) -> str | bytes:
        data = self._take(self._integer(_UINT64))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            # Tokens may be any bytes; keep them unchanged.
            return data

    def _integer(self, form: struct.Struct) -> int:
        return int(form.unpack(self._take(form.size))[0])

    def _check_room(self, count: int, least: int, what: str) -> None:
        if count * least > self._file.size - self._cursor:
            raise FormatError(
                f"{self._name}: the header claims {count} {what}, more than the file holds",
                "the file is truncated or damaged; download it again",
            )

    def _take(self, count: int) -> bytes:
        if count > self._file.size - self._cursor:
            raise FormatError(
                f"{self._name}: the header runs past the end of the file", "the file is truncated; download it again"
            )
        low = self._cursor - self._start
        if low + count > len(self._buffer):
            size = min(max(count, _READ_AHEAD), self._file.size - self._cursor)
            buffer = bytearray(size)
            self._file.read_into(memoryview(buffer), self._cursor)
            self._buffer, self._start, low = bytes(buffer), self._cursor, 0
        self._cursor += count
        return self._buffer[low : low + count]
