"""The encoder of a quantization: rows as stored to blocks of every type that the outputs want."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from mconv.convert.errors import QuantizationError
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.encodings import widen
from mconv.convert.tensors.rows import Target
from mconv.quantize import ggml, kernels
from mconv.quantize.imatrix import ImportanceMatrix

# The bits of 65280, the largest bfloat16 that is a finite float16.
_LARGEST_BELOW_FLOAT16 = 0x477F


class BlockEncoder:
    """Encodes row ranges (see `convert.engine.local.Encode`); keeps no state between calls, so threads may share it."""

    def __init__(self, matrix: ImportanceMatrix | None) -> None:
        self._matrix = matrix

    def __call__(
        self, target: Target, kinds: Collection[BlockType], rows: np.ndarray, first_row: int
    ) -> Mapping[BlockType, np.ndarray]:
        """Encode rows to each kind; all rows belong to one expert.

        Raises:
            QuantizationError: a block's scale overflowed, or ggml lacks the type.
        """
        stored = BlockType[target.rows.dtype]
        encoded = {kind: rows.view(np.uint8) for kind in kinds if kind is stored}
        if stored.is_quantized and len(encoded) < len(kinds):
            rows = _decode(stored, rows, target.shape[-1])
        weights = self._weights(target, first_row)
        may_overflow = _exceeds_float16(rows)
        for kind in kinds:
            if kind is not stored:
                encoded[kind] = _encode(kind, rows, weights if kind.uses_importance else None)
                if may_overflow:
                    _check_scales(target, kind, rows, encoded[kind], first_row)
        return encoded

    def _weights(self, target: Target, first_row: int) -> np.ndarray | None:
        weights = self._matrix.weights_of(target.name, target.shape) if self._matrix else None
        if weights is None:
            return None
        return weights[first_row // target.shape[-2]]


def _encode(kind: BlockType, rows: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Blocks through our own kernel where there is one, else through ggml: the same bytes, at another speed."""
    width = rows.shape[1]
    blocks = np.empty((len(rows), kind.row_bytes(width)), np.uint8)
    if kind.name in kernels.SUPPORTED:
        kernels.quantize_rows(kind.name, rows, weights, blocks)
    else:
        ggml.quantize_rows(kind, np.ascontiguousarray(widen(rows)), weights, blocks)
    return blocks


def _decode(stored: BlockType, blocks: np.ndarray, width: int) -> np.ndarray:
    values = np.empty((len(blocks), width), np.float32)
    ggml.dequantize_rows(stored, blocks, values)
    return values


def _exceeds_float16(rows: np.ndarray) -> bool:
    """Whether a scale of these rows could overflow: no scale is larger than the largest weight of its block."""
    if rows.dtype == np.uint16:
        return int((rows & np.uint16(0x7FFF)).max()) > _LARGEST_BELOW_FLOAT16
    return rows.dtype == np.float32 and max(-rows.min(), rows.max()) > np.finfo(np.float16).max


def _check_scales(target: Target, kind: BlockType, rows: np.ndarray, blocks: np.ndarray, first_row: int) -> None:
    """Refuse blocks that lost their weights to an overflow: a scale of infinity, or IQ4_XS's plausible nonsense."""
    values = widen(rows)
    decoded = _decode(kind, blocks, rows.shape[1])
    columns = np.abs(values).argmax(axis=1)
    largest = np.take_along_axis(values, columns[:, None], axis=1)[:, 0].astype(np.float64)
    with np.errstate(invalid="ignore"):
        errors = np.abs(np.take_along_axis(decoded, columns[:, None], axis=1)[:, 0] - largest)
    # Even two bits bring the largest weight of a row back to within a factor of two; NaN compares false.
    lost = np.flatnonzero(~(errors <= np.abs(largest) / 2))
    if lost.size:
        raise QuantizationError(
            f"{target.place(first_row + lost[0], columns[lost[0]])} is too large for {kind.name}",
            "give this tensor a type with a wider range, such as --tensor-type NAME=bf16",
        )
