"""The block types of ggml as encodings: one plane each, byte for byte the same as llama-quantize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mconv.convert.errors import QuantizationError
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.encodings import RowBlock, register_encoding, widen
from mconv.quantize import ggml, kernels

# The bits of 65280, the largest bfloat16 that is a finite float16.
_LARGEST_BELOW_FLOAT16 = 0x477F


@dataclass(frozen=True)
class BlockEncoding:
    """Blocks of a quantized type, encoded by this package's kernel if there is one, else by ggml: the same bytes."""

    kind: BlockType

    @property
    def name(self) -> str:
        """The name of the `BlockType`."""
        return self.kind.name

    def plane_row_bytes(self, row_weights: int) -> tuple[int, ...]:
        """One plane."""
        return (self.kind.row_bytes(row_weights),)

    def encode(self, block: RowBlock, importance: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """See `convert.tensors.encodings.Encoding`. Blocks that already have this type are copied unchanged.

        Raises:
            QuantizationError: the scale of a block overflowed, or ggml does not have the type.
        """
        if block.dtype == self.name:
            return (block.stored.view(np.uint8),)
        rows = block.floats
        blocks = np.empty((len(rows), self.kind.row_bytes(rows.shape[1])), np.uint8)
        weights = importance if self.kind.uses_importance else None
        if self.name in kernels.SUPPORTED:
            kernels.quantize_rows(self.name, rows, weights, blocks)
        else:
            ggml.quantize_rows(self.kind, np.ascontiguousarray(widen(rows)), weights, blocks)
        if _exceeds_float16(rows):
            self._check_scales(block, blocks)
        return (blocks,)

    def decode(self, planes: Sequence[np.ndarray], row_weights: int) -> np.ndarray:
        """Decode blocks like llama-quantize before it quantizes again, float32 (n, row_weights)."""
        values = np.empty((len(planes[0]), row_weights), np.float32)
        ggml.dequantize_rows(self.kind, planes[0], values)
        return values

    def _check_scales(self, block: RowBlock, blocks: np.ndarray) -> None:
        """Reject blocks damaged by an overflow: an infinite scale, or plausible but wrong values in IQ4_XS."""
        values = widen(block.floats)
        decoded = self.decode((blocks,), values.shape[1])
        columns = np.abs(values).argmax(axis=1)
        largest = np.take_along_axis(values, columns[:, None], axis=1)[:, 0].astype(np.float64)
        with np.errstate(invalid="ignore"):
            errors = np.abs(np.take_along_axis(decoded, columns[:, None], axis=1)[:, 0] - largest)
        # Even with two bits, the largest weight of a row is decoded within a factor of two; NaN compares false.
        lost = np.flatnonzero(~(errors <= np.abs(largest) / 2))
        if lost.size:
            raise QuantizationError(
                f"{block.place(int(lost[0]), int(columns[lost[0]]))} is too large for {self.name}",
                "give this tensor a type with a wider range, such as --tensor-type NAME=bf16",
            )


def _exceeds_float16(rows: np.ndarray) -> bool:
    """Whether a scale of these rows could overflow: no scale is larger than the largest weight of its block."""
    if rows.dtype == np.uint16:
        return int((rows & np.uint16(0x7FFF)).max()) > _LARGEST_BELOW_FLOAT16
    return rows.dtype == np.float32 and max(-rows.min(), rows.max()) > np.finfo(np.float16).max


for _kind in BlockType:
    if _kind.is_quantized:
        register_encoding(BlockEncoding(_kind))
