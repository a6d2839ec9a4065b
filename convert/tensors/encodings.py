"""Encodings that a conversion needs: the float types, and Q8_0. Only here, and in `quantize`, is a value ever
touched."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from mconv.convert.errors import QuantizationError, SourceError
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.nodes import FLOAT_DTYPES, Tensor
from mconv.convert.tensors.rows import Rows, Target

_BF16_EXPONENT = np.uint16(0x7F80)


def widen(rows: np.ndarray) -> np.ndarray:
    """Rows as stored (float32, float16, or bfloat16 bits in uint16) as float32; exact."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return rows.astype(np.float32, copy=False)


def encode_floats(
    target: Target, kinds: Collection[BlockType], rows: np.ndarray, first_row: int
) -> Mapping[BlockType, np.ndarray]:
    """The encoder of a conversion (see `engine.local.Encode`). Rows of a quantized source are decoded first.

    Raises:
        SourceError: a block decodes to NaN or infinity.
        QuantizationError: a value is beyond the range of the wanted float type, or the source's type has no decoder.
    """
    stored = BlockType[target.rows.dtype]
    if stored.is_quantized:
        rows = decode(stored, rows)
        check_finite(target, rows, first_row)
    encoded = {kind: encode(kind, rows) for kind in kinds}
    for kind, blocks in encoded.items():
        # In their own type the values are finite already, and as large as they were.
        safe = kind is stored or kind.name not in FLOAT_DTYPES
        bad = None if safe else find_not_finite(blocks.view(FLOAT_DTYPES[kind.name]))
        if bad is not None:
            raise QuantizationError(
                f"{target.place(first_row + bad[0], bad[1])} is too large for {kind.name}",
                "choose f32 or bf16 for the matrices",
            )
    return encoded


@dataclass(frozen=True)
class ConvertedTensor:
    """A tensor in another float type than it is stored in: blocks decoded, floats widened or rounded.

    Attributes:
        source: the tensor as it is stored.
        kind: F32, F16 or BF16.
    """

    source: Tensor
    kind: BlockType

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    @property
    def dtype(self) -> str:
        """F32, F16 or BF16."""
        return self.kind.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's shape."""
        return self.source.shape

    @property
    def position(self) -> tuple[int, int]:
        """The source's place."""
        return self.source.position

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) in the type: (stop - start, row length).

        Raises:
            SourceError, QuantizationError: see `check_finite` and `encode_floats`.
        """
        target = Target(self.name, self.shape, Rows((self.source,)))
        rows = self.source.read(start, stop)
        if rows.dtype != np.uint8:
            check_finite(target, rows, start)
        return encode_floats(target, (self.kind,), rows, start)[self.kind].view(FLOAT_DTYPES[self.kind.name])


def encode(kind: BlockType, rows: np.ndarray) -> np.ndarray:
    """Rows as stored to rows of bytes.

    Args:
        kind: F32, F16, BF16 or Q8_0.
        rows: (n, k) float32, float16, or bfloat16 bits in uint16.

    Returns:
        uint8 (n, bytes of a row). Bytes pass through untouched where the type is already the wanted one.
    """
    if (kind is BlockType.BF16 and rows.dtype == np.uint16) or (kind is BlockType.F16 and rows.dtype == np.float16):
        return rows.view(np.uint8)
    values = widen(rows)
    if kind is BlockType.F32:
        return np.ascontiguousarray(values).view(np.uint8)
    if kind is BlockType.BF16:
        return _round_to_bfloat16(values).view(np.uint8)
    if kind is BlockType.F16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint8)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    return np.asarray(quantize(values, GGMLQuantizationType[kind.name]))


def decode(kind: BlockType, blocks: np.ndarray) -> np.ndarray:
    """Rows of blocks as float32.

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
        # A damaged block may hold a scale that is infinite: the caller looks for those.
        with np.errstate(all="ignore"):
            return np.ascontiguousarray(dequantize(blocks, number), dtype=np.float32)
    except NotImplementedError as error:
        raise refused from error


def check_finite(target: Target, rows: np.ndarray, first_row: int) -> None:
    """Refuse NaN and infinity, which no later step survives.

    Raises:
        SourceError: names the source's tensor, row and column of the first one.
    """
    bad = find_not_finite(rows)
    if bad is not None:
        raise SourceError(
            f"{target.place(first_row + bad[0], bad[1])} is {float(widen(rows)[bad])}",
            "the checkpoint is damaged or its training diverged; get another one",
        )


def find_not_finite(rows: np.ndarray) -> tuple[int, int] | None:
    """Row and column of the first NaN or infinity in rows as stored, or None."""
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
