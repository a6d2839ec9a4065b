"""Encodings: how the values of a tensor become bytes. Values change only here and in `quantize`.

An encoding turns each matrix into one or more planes: a ggml block type has one, a format that stores scales separately
has two or three. Every plane has a row for each row of the matrix, so that any range of rows can be encoded separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Protocol

import numpy as np

from mconv.convert.errors import FormatError, QuantizationError, SourceError
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.nodes import FLOAT_DTYPES, Tensor, row_length
from mconv.convert.tensors.plain import plain
from mconv.convert.tensors.rows import Rows, Target

_BF16_EXPONENT = np.uint16(0x7F80)


class RowBlock:
    """A range of rows of a target, as stored, to be encoded.

    Args:
        target: the whole tensor.
        first_row: the index of the first row.
        stored: (n, k) float32, float16, or bfloat16 bits in uint16; raw bytes (n, row bytes) of a block type.
        dtype: the name of their type. Default: that of the target.
    """

    def __init__(self, target: Target, first_row: int, stored: np.ndarray, dtype: str | None = None) -> None:
        self.target = target
        self.first_row = first_row
        self.stored = stored
        self.dtype = dtype or target.rows.dtype

    @cached_property
    def floats(self) -> np.ndarray:
        """The values, (n, k) float32, float16, or bfloat16 bits in uint16: as stored, or decoded from blocks."""
        if self.dtype in FLOAT_DTYPES:
            return self.stored
        return find_encoding(self.dtype).decode((self.stored,), self.target.shape[-1])

    def place(self, row: int, column: int) -> str:
        """The name of one value of the block, by its place in the source."""
        return self.target.place(self.first_row + row, column)

    def check_finite(self) -> None:
        """Reject NaN and infinity among floats, which no later step can handle.

        Raises:
            SourceError: a value is not finite; names tensor, row and column of the first one in the source.
        """
        bad = None if self.stored.dtype == np.uint8 else find_not_finite(self.stored)
        if bad is not None:
            raise SourceError(
                f"{self.place(*bad)} is {float(widen(self.stored)[bad])}",
                "the checkpoint is damaged or its training diverged; get another one",
            )


class Encoding(Protocol):
    """A way to write a matrix. Encodings keep no state between calls: threads share them, and plans name them."""

    @property
    def name(self) -> str:
        """Its name, such as Q4_K."""

    def plane_row_bytes(self, row_weights: int) -> tuple[int, ...]:
        """For each plane, the bytes of a row of `row_weights` weights.

        Raises:
            QuantizationError: the encoding cannot store such rows.
        """

    def encode(self, block: RowBlock, importance: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """The rows of each plane, uint8 (n, row bytes).

        Args:
            block: finite rows; if experts are stacked, all rows belong to one expert.
            importance: float32 (k,), how much each column matters; None if all matter equally.

        Raises:
            QuantizationError: a value is outside the range of the encoding.
        """

    def decode(self, planes: Sequence[np.ndarray], row_weights: int) -> np.ndarray:
        """The values that planes represent, float32 (n, row_weights): the inverse of `encode`.

        Raises:
            QuantizationError: the encoding cannot be decoded here.
        """


# Modules that register more encodings when imported. They depend on this one, so they are named here, not imported: a
# process can then run a plan that uses these encodings without having imported the modules.
_PROVIDERS = ("mconv.quantize.encodings",)
_encodings: dict[str, Encoding] = {}


def register_encoding(encoding: Encoding) -> None:
    """Register an encoding under its name."""
    _encodings[encoding.name] = encoding


def find_encoding(name: str) -> Encoding:
    """The encoding of this name.

    Raises:
        FormatError: there is no such encoding, as in a plan of another version.
    """
    if name not in _encodings:
        for provider in _PROVIDERS:
            import_module(provider)
    if name not in _encodings:
        raise FormatError(f"unknown encoding {name!r}", "make the plan again with this version")
    return _encodings[name]


@dataclass(frozen=True)
class FloatEncoding:
    """F32, F16 or BF16, rounded to nearest even."""

    kind: BlockType

    @property
    def name(self) -> str:
        """F32, F16 or BF16."""
        return self.kind.name

    def plane_row_bytes(self, row_weights: int) -> tuple[int, ...]:
        """One plane."""
        return (self.kind.row_bytes(row_weights),)

    def encode(self, block: RowBlock, importance: np.ndarray | None = None) -> tuple[np.ndarray, ...]:  # noqa: ARG002
        """See `Encoding`; importance has no effect on floats."""
        encoded = encode_floats(self.kind, block.floats)
        # Values that keep their type are already known to be finite and in range.
        bad = None if block.dtype == self.name else find_not_finite(encoded.view(FLOAT_DTYPES[self.name]))
        if bad is not None:
            raise QuantizationError(
                f"{block.place(*bad)} is too large for {self.name}", "choose f32 or bf16 for the matrices"
            )
        return (encoded,)

    def decode(self, planes: Sequence[np.ndarray], row_weights: int) -> np.ndarray:  # noqa: ARG002
        """See `Encoding`; exact."""
        return widen(planes[0].view(FLOAT_DTYPES[self.name]))


for _kind in (BlockType.F32, BlockType.F16, BlockType.BF16):
    register_encoding(FloatEncoding(_kind))


@plain
@dataclass(frozen=True)
class ConvertedTensor:
    """A tensor converted to another float type: blocks are decoded, floats are widened or rounded.

    Attributes:
        source: the tensor as it is stored.
        kind: F32, F16 or BF16.
    """

    source: Tensor
    kind: BlockType

    @property
    def name(self) -> str:
        """The name of the source."""
        return self.source.name

    @property
    def dtype(self) -> str:
        """F32, F16 or BF16."""
        return self.kind.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the source."""
        return self.source.shape

    @property
    def position(self) -> tuple[int, int]:
        """The position of the source."""
        return self.source.position

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) in the new type: (stop - start, row length).

        Raises:
            SourceError: a value is not finite.
            QuantizationError: a value is outside the range of the type, or the type of the source has no decoder.
        """
        rows, stored = self.source.read(start, stop), self.source.dtype
        if stored not in FLOAT_DTYPES:
            rows, stored = decode(BlockType[stored], rows), "F32"
        block = RowBlock(Target(self.name, self.shape, Rows((self.source,))), start, rows, stored)
        block.check_finite()
        return find_encoding(self.kind.name).encode(block)[0].view(FLOAT_DTYPES[self.kind.name])


@plain
@dataclass(frozen=True)
class DecodedTensor:
    """A tensor stored in the planes of an encoding, decoded as its rows are read.

    Attributes:
        encoding: the name of the encoding.
        planes: the rows of each plane as bytes, uint8 (n, row bytes).
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    planes: tuple[Tensor, ...]
    position: tuple[int, int]

    @property
    def dtype(self) -> str:
        """Always F32."""
        return "F32"

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), float32 (stop - start, row length)."""
        stored = [plane.read(start, stop) for plane in self.planes]
        return find_encoding(self.encoding).decode(stored, row_length(self.shape))


def widen(rows: np.ndarray) -> np.ndarray:
    """Rows as stored (float32, float16, or bfloat16 bits in uint16) as float32; exact."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return rows.astype(np.float32, copy=False)


def encode_floats(kind: BlockType, rows: np.ndarray) -> np.ndarray:
    """Encode rows of floats as rows of bytes.

    Args:
        kind: F32, F16 or BF16.
        rows: (n, k) float32, float16, or bfloat16 bits in uint16.

    Returns:
        uint8 (n, bytes of a row). If the rows already have the type, their bytes are unchanged.
    """
    if (kind is BlockType.BF16 and rows.dtype == np.uint16) or (kind is BlockType.F16 and rows.dtype == np.float16):
        return rows.view(np.uint8)
    values = widen(rows)
    if kind is BlockType.F32:
        return np.ascontiguousarray(values).view(np.uint8)
    if kind is BlockType.BF16:
        return _round_to_bfloat16(values).view(np.uint8)
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.uint8)


def decode(kind: BlockType, blocks: np.ndarray) -> np.ndarray:
    """Decode rows of blocks to float32.

    Args:
        kind: the quantized type of the blocks.
        blocks: uint8 (n, bytes of a row).

    Raises:
        QuantizationError: gguf's Python package cannot decode the type.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    refused = QuantizationError(
        f"{kind.name} cannot be decoded", "start from a file of another type, or from the original checkpoint"
    )
    number = GGMLQuantizationType.__members__.get(kind.name)
    if number is None:
        raise refused
    try:
        # A damaged block may have an infinite scale: the caller checks for that.
        with np.errstate(all="ignore"):
            return np.ascontiguousarray(dequantize(blocks, number), dtype=np.float32)
    except NotImplementedError as error:
        raise refused from error


def find_not_finite(rows: np.ndarray) -> tuple[int, int] | None:
    """Row and column of the first NaN or infinity in stored rows, or None."""
    if rows.dtype == np.uint16:
        # All exponent bits set; a maximum is much cheaper than a mask over every value.
        if rows.size == 0 or int((rows & np.uint16(0x7FFF)).max()) < _BF16_EXPONENT:
            return None
        mask = (rows & _BF16_EXPONENT) == _BF16_EXPONENT
    else:
        if np.isfinite(rows).all():
            return None
        mask = ~np.isfinite(rows)
    row, column = np.argwhere(mask)[0]
    return int(row), int(column)


def _round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper half of each float32, rounded to nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (rounded >> np.uint32(16)).astype(np.uint16)
