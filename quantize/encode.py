"""The encoder of a quantization: rows as stored to blocks of every type that the outputs want."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from convert.encodings import find_not_finite, widen
from convert.errors import QuantizationError
from convert.families.table import Target
from convert.types import BlockType
from quantize.ggml import dequantize_rows, quantize_rows
from quantize.imatrix import ImportanceMatrix


class BlockEncoder:
    """Encodes row ranges (see `convert.run.Encode`); keeps no state between calls, so threads may share it."""

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
        if len(encoded) < len(kinds):
            values = self._values(target, stored, rows)
            weights = self._weights(target, first_row)
            for kind in kinds:
                if kind is not stored:
                    encoded[kind] = _blocks(target, kind, values, weights, first_row)
        return encoded

    def _values(self, target: Target, stored: BlockType, rows: np.ndarray) -> np.ndarray:
        if not stored.is_quantized:
            return widen(rows)
        values = np.empty((len(rows), target.shape[-1]), np.float32)
        dequantize_rows(stored, rows, values)
        return values

    def _weights(self, target: Target, first_row: int) -> np.ndarray | None:
        weights = self._matrix.weights_of(target.name, target.shape) if self._matrix else None
        if weights is None:
            return None
        return weights[first_row // target.shape[-2]]


def _blocks(
    target: Target, kind: BlockType, values: np.ndarray, weights: np.ndarray | None, first_row: int
) -> np.ndarray:
    blocks = np.empty((len(values), kind.row_bytes(values.shape[1])), np.uint8)
    quantize_rows(kind, values, weights if kind.uses_importance else None, blocks)
    _check_scales(target, kind, values, blocks, first_row)
    return blocks


def _check_scales(target: Target, kind: BlockType, values: np.ndarray, blocks: np.ndarray, first_row: int) -> None:
    """Refuse blocks whose float16 scale overflowed: no scale is larger than the largest weight of its block."""
    if np.abs(values).max() <= np.finfo(np.float16).max:
        return
    decoded = np.empty_like(values)
    dequantize_rows(kind, blocks, decoded)
    bad = find_not_finite(decoded)
    if bad is not None:
        # The whole block is lost with its scale; the largest weight nearby is to blame.
        column = int(np.abs(values[bad[0]]).argmax())
        raise QuantizationError(
            f"{target.place(first_row + bad[0], column)} is too large for {kind.name}",
            "give this tensor a type with a wider range, such as --tensor-type NAME=bf16",
        )
