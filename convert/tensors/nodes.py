"""Tensors as sources of rows. Only headers are in memory until a row range is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.files import SourceFile
from mconv.convert.tensors.plain import plain

FLOAT_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
}
"""The numpy type that stores each float type. numpy has no bfloat16: its bits are stored as uint16."""


class Tensor(Protocol):
    """A tensor whose rows can be read: rows run along the last axis; a vector is treated as rows of one value."""

    @property
    def name(self) -> str:
        """Canonical (Hugging Face) name."""

    @property
    def dtype(self) -> str:
        """F32, F16, BF16, or the name of a GGUF block type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes, slowest first."""

    @property
    def position(self) -> tuple[int, int]:
        """Its position in the source: (file, position in the file). Converters keep this order."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as stored: (stop - start, row length); raw bytes (rows, row bytes) of a block type."""


def row_count(shape: tuple[int, ...]) -> int:
    """Number of rows of a tensor of this shape."""
    return math.prod(shape[:-1]) if len(shape) > 1 else math.prod(shape)


def row_length(shape: tuple[int, ...]) -> int:
    """Number of values in each row of a tensor of this shape."""
    return shape[-1] if len(shape) > 1 else 1


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of all rows as stored."""
    kind = BlockType[tensor.dtype]
    return math.prod(tensor.shape) // kind.block_weights * kind.block_bytes


@plain
@dataclass(frozen=True)
class FileTensor:
    """A tensor stored contiguously in a file, row after row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: SourceFile
    offset: int
    row_bytes: int
    position: tuple[int, int]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), read from the file into a new array."""
        storage = FLOAT_DTYPES.get(self.dtype)
        width = self.row_bytes if storage is None else self.row_bytes // storage.itemsize
        rows = np.empty((stop - start, width), np.uint8 if storage is None else storage)
        self.file.read_into(rows.data.cast("B"), self.offset + start * self.row_bytes)
        return rows

    def slice_rows(self, name: str, start: int, shape: tuple[int, ...]) -> FileTensor:
        """The rows from `start` on as a separate tensor of the given shape."""
        return replace(self, name=name, shape=shape, offset=self.offset + start * self.row_bytes)


@plain
@dataclass(frozen=True)
class ConstantTensor:
    """A small float32 tensor that is computed rather than stored.

    Attributes:
        data: its values, row after row.
    """

    name: str
    shape: tuple[int, ...]
    data: bytes = field(repr=False)
    position: tuple[int, int] = (-1, 0)

    @classmethod
    def of(cls, name: str, values: np.ndarray) -> ConstantTensor:
        """The tensor of these values."""
        return cls(name, values.shape, np.ascontiguousarray(values, np.float32).tobytes())

    @property
    def dtype(self) -> str:
        """Always F32."""
        return "F32"

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of the values, float32 (stop - start, row length)."""
        rows = np.frombuffer(self.data, np.float32).reshape(row_count(self.shape), row_length(self.shape))
        return rows[start:stop].copy()
