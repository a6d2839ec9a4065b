"""Compare a row range of a tensor with its reference.

With every type, each row is encoded separately. So any range of rows can be compared, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mconv.convert.errors import QuantizationError
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.encodings import RowBlock, encode_floats, find_encoding, find_not_finite, widen
from mconv.convert.tensors.nodes import row_count
from mconv.quantize import ggml, kernels
from mconv.quantize.imatrix import ImportanceMatrix
from mconv.validate.weights.comparison import MOST_EXAMPLES, Comparison, Difference
from mconv.validate.weights.errors import LIMITS, Sums
from mconv.validate.weights.kernels import damaged_blocks, measure
from mconv.validate.weights.pairs import Pair
from mconv.validate.weights.values import choose_rows, decode, read_scattered

_SAMPLED_ROWS = 8
# For all other types ggml searches for scales, at a few million weights per second: too slow to run at reading speed.
_ENCODABLE = kernels.SUPPORTED | {"Q1_0", "Q2_0", "Q4_0", "Q4_1", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0"}
_WORDS: dict[BlockType, type[np.unsignedinteger]] = {
    BlockType.F32: np.uint32,
    BlockType.F16: np.uint16,
    BlockType.BF16: np.uint16,
}


def is_lossless(pair: Pair) -> bool:
    """Whether the artifact's type is a float type that can hold every value of the reference's type."""
    found = BlockType[pair.found.dtype]
    return found is BlockType.F32 or (not found.is_quantized and found.name == pair.reference.dtype)


def is_encodable(pair: Pair) -> bool:
    """Whether the reference already has the artifact's type, or can be encoded to it at reading speed."""
    found = BlockType[pair.found.dtype]
    return found.name in _ENCODABLE or (found.is_quantized and found.name == pair.reference.dtype)


@dataclass(frozen=True)
class Encoder:
    """The encoder that wrote the blocks of a tensor: the encoding of its type, with or without importance values.

    Attributes:
        matrix: the importance matrix, or None.
    """

    matrix: ImportanceMatrix | None

    def encode(self, pair: Pair, source: np.ndarray, first_row: int) -> np.ndarray:
        """The blocks of some rows of the reference, uint8 (n, row bytes).

        Raises:
            QuantizationError: they cannot be encoded.
        """
        weights = self.matrix.weights_of(pair.target.name, pair.target.shape) if self.matrix else None
        importance = None if weights is None else weights[first_row // pair.target.shape[-2]]
        block = RowBlock(pair.target, first_row, source, pair.reference.dtype)
        return find_encoding(pair.found.dtype).encode(block, importance)[0]


def find_encoder(pair: Pair, matrix: ImportanceMatrix | None) -> Encoder | None:
    """The encoder that wrote a tensor: with or without importance, whichever reproduces more blocks of a few rows.

    Returns:
        None if neither reproduces most of them.

    Raises:
        QuantizationError: the importance matrix has an entry for the tensor, but of another size.
    """
    kind = BlockType[pair.found.dtype]
    weighs = matrix is not None and matrix.weights_of(pair.target.name, pair.target.shape) is not None
    rows = choose_rows(pair.reference, _SAMPLED_ROWS)
    blocks = read_scattered(pair.found, rows).reshape(-1, kind.block_bytes)
    source = read_scattered(pair.reference, rows)
    best, most = None, 0.5
    for encoder in (Encoder(matrix), Encoder(None)) if weighs else (Encoder(None),):
        expected = _encode(encoder, pair, source, 0)
        equal = 0.0 if expected is None else float((blocks == expected).all(axis=1).mean())
        if equal > most:
            best, most = encoder, equal
    return best


def compare_floats(pair: Pair, start: int, stop: int, *, measured: bool) -> Comparison:
    """Compare rows [start, stop) of a float type with the reference, widened or rounded to that type.

    Args:
        measured: whether to compute errors even if all bytes are equal.
    """
    kind = BlockType[pair.found.dtype]
    stored, source = pair.found.read(start, stop), pair.reference.read(start, stop)
    if BlockType[pair.reference.dtype].is_quantized:
        source = decode(pair.reference, source)
    rounded = encode_floats(kind, source)
    found, expected = stored.view(_WORDS[kind]), rounded.view(_WORDS[kind])
    places = np.flatnonzero((found != expected).reshape(-1))
    changed = found.reshape(-1)[places] ^ expected.reshape(-1)[places]
    values, truth = widen(stored.reshape(-1)[places]), widen(rounded.view(stored.dtype).reshape(-1)[places])
    examples = (
        Difference(
            start + place // found.shape[1],
            place % found.shape[1],
            float(values[i]),
            float(truth[i]),
            f"bit {_bit(changed[i])}" if np.bitwise_count(changed[i]) == 1 else "",
        )
        for i, place in enumerate(places[:MOST_EXAMPLES].tolist())
    )
    return Comparison(
        sums=measure(widen(stored), widen(source)) if measured else Sums(found.size),
        units=found.size,
        unequal=len(places),
        bits=int(np.bitwise_count(changed).sum()),
        examples=tuple(examples),
        not_finite=_not_finite(stored, start),
    )


def compare_blocks(pair: Pair, start: int, stop: int, encoder: Encoder | None) -> Comparison:
    """Compare rows [start, stop) of a quantized type with the reference.

    Args:
        encoder: the encoder that wrote the blocks. If None, every block counts as unequal.
    """
    kind = BlockType[pair.found.dtype]
    stored, source = pair.found.read(start, stop), pair.reference.read(start, stop)
    values = decode(pair.found, stored)
    found, reference = _in_blocks(kind, values), _in_blocks(kind, decode(pair.reference, source))
    blocks = stored.reshape(-1, kind.block_bytes)
    expected = None if encoder is None else _encode(encoder, pair, source, start)
    changed = np.zeros_like(blocks) if expected is None else blocks ^ expected
    unequal = np.arange(len(blocks)) if expected is None else np.flatnonzero(changed.any(axis=1))
    if expected is None:
        damaged = np.flatnonzero(damaged_blocks(kind, found, reference))
    else:
        damaged = unequal[damaged_blocks(kind, found[unequal], reference[unequal])]
    examples = []
    for block in (damaged if len(damaged) or expected is None else unequal)[:MOST_EXAMPLES].tolist():
        truth = reference[block] if expected is None else _block_values(pair, expected[block])
        column = _worst(kind, found[block], truth) if expected is None else int(np.abs(found[block] - truth).argmax())
        row, place = divmod(block, values.shape[1] // kind.block_weights)
        examples.append(
            Difference(
                start + row,
                place * kind.block_weights + column,
                float(found[block, column]),
                float(truth[column]),
                _block_bit(changed[block]),
            )
        )
    sums = measure(found, reference)
    whole = np.delete(np.arange(len(blocks)), damaged)
    return Comparison(
        sums=sums,
        units=len(blocks),
        unequal=len(unequal),
        bits=int(np.bitwise_count(changed).sum()),
        damaged=len(damaged),
        unlike=int(damaged_blocks(kind, found[damaged], reference[damaged], codes=False).sum()),
        rest=measure(found[whole], reference[whole]) if len(damaged) else sums,
        examples=tuple(examples),
        not_finite=None if np.isfinite(sums.squared_errors) else _not_finite(values, start),
    )


def _encode(encoder: Encoder, pair: Pair, source: np.ndarray, start: int) -> np.ndarray | None:
    """The blocks of the reference's rows from `start` on; None if they cannot be encoded."""
    kind = BlockType[pair.found.dtype]
    # The result of encoding NaN is undefined.
    if source.dtype != np.uint8 and find_not_finite(source) is not None:
        return None
    first_row = (pair.place.expert or 0) * row_count(pair.reference.shape) + start
    try:
        return encoder.encode(pair, source, first_row).reshape(-1, kind.block_bytes)
    except QuantizationError:
        return None


def _in_blocks(kind: BlockType, values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, kind.block_weights)


def _block_values(pair: Pair, block: np.ndarray) -> np.ndarray:
    kind = BlockType[pair.found.dtype]
    values = np.empty((1, kind.block_weights), np.float32)
    ggml.dequantize_rows(kind, block.reshape(1, -1), values)
    return values[0]


def _worst(kind: BlockType, found: np.ndarray, reference: np.ndarray) -> int:
    """The value of a damaged block with the largest error relative to the range of its run, ignoring clamped ones."""
    runs = found.reshape(-1, LIMITS[kind].run or len(found))
    low, high = runs.min(axis=1, keepdims=True), runs.max(axis=1, keepdims=True)
    truth = reference.reshape(runs.shape)
    clamped = ((runs == low) & (truth < low)) | ((runs == high) & (truth > high))
    errors = np.abs(runs - truth)
    inside = np.where(clamped | (low == high), 0, errors / np.maximum(high - low, np.finfo(np.float32).tiny))
    return int((inside if inside.any() else errors).argmax())


def _block_bit(changed: np.ndarray) -> str:
    """The bit of a block that differs, if it is a single one."""
    if int(np.bitwise_count(changed).sum()) != 1:
        return ""
    byte = int(changed.argmax())
    return f"byte {byte}, bit {_bit(changed[byte])} of its block"


def _bit(word: np.unsignedinteger) -> int:
    return int(word).bit_length() - 1


def _not_finite(rows: np.ndarray, start: int) -> tuple[int, int, float] | None:
    place = find_not_finite(rows)
    return None if place is None else (start + place[0], place[1], float(widen(rows)[place]))
