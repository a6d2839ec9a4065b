"""Find out what a wrong tensor contains instead.

Each hypothesis is tested on a few rows, then on all. Values agree if they are within the errors of the type, so that a
mistake made before quantization is recognized after it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mconv.convert.errors import QuantizationError, SourceError
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.encodings import ConvertedTensor
from mconv.convert.tensors.nodes import Tensor, row_count
from mconv.convert.tensors.orders import Inverse, Listed, RowOrder
from mconv.convert.tensors.rows import ArrangedTensor, Rows
from mconv.validate.weights.comparison import Comparison
from mconv.validate.weights.errors import LIMITS, Sums
from mconv.validate.weights.kernels import measure
from mconv.validate.weights.pairs import Pair
from mconv.validate.weights.transposed import TransposedTensor
from mconv.validate.weights.values import choose_rows, decode, read_scattered, read_values, row_ranges
from mconv.validate.weights.verdict import Fault, factor_slack

_SAMPLED_ROWS = 16
_MAPPED_ROWS = 64
_PROJECTIONS = 32
# Twice the largest error of rounding to bfloat16.
_ROUNDING = 2.0**-8
# Unrelated matrices have a distance of 1.41; quantizing one to four bits gives a distance of about 0.1.
_LIKENESS = 0.3

# The fault if the rows, put into Hugging Face's order, are the reference's in llama.cpp's order; and vice versa.
_SAID_OF_GGUF = (
    "has its rows interleaved for the rotary embedding twice",
    "has its rows in Hugging Face's rotary order: the interleave of llama.cpp is missing",
)
_SAID_OF_FOLDERS = (
    "has its rows in llama.cpp's interleaved rotary order",
    "has its rows taken out of an interleaved order that they were not in",
)


class _Suspect:
    """A suspect tensor, with methods to test hypotheses on it."""

    def __init__(self, pair: Pair, sums: Sums) -> None:
        self.pair = pair
        self.sums = sums
        self.kind = BlockType[pair.found.dtype]
        self.count = row_count(pair.found.shape)
        self.is_matrix = len(pair.found.shape) > 1
        # Norms are vectors, and those of two layers can be very similar.
        self.tolerance = LIMITS[self.kind].relative_rmse if self.kind.is_quantized else _ROUNDING
        self.likeness = max(self.tolerance, _LIKENESS) if self.is_matrix else self.tolerance
        self._rows = choose_rows(pair.found, _SAMPLED_ROWS) if self.is_matrix else np.arange(self.count)
        self._values = decode(pair.found, read_scattered(pair.found, self._rows))

    def is_like(self, view: Tensor) -> bool:
        """Whether the tensor matches another one, within the errors of its type."""
        return self.distance(view) <= self.likeness and self.errors(view).relative_rmse <= self.likeness

    def distance(self, view: Tensor) -> float:
        """Relative RMSE of a few rows; of a single one if that already shows that they differ."""
        rows, values = self._rows, self._values
        if self.is_matrix:
            first = int(np.abs(values).max(axis=1).argmax())
            row = int(rows[first])
            error = measure(values[first : first + 1], read_values(view, row, row + 1)).relative_rmse
            if not error <= self.likeness:
                return error
        return measure(values, decode(view, read_scattered(view, rows))).relative_rmse

    def errors(self, view: Tensor, start: int = 0, stop: int | None = None) -> Sums:
        """Sums over rows [start, stop) of the tensor and another one."""
        sums = Sums()
        for low, high in row_ranges(self.pair.found, start, stop):
            sums = sums.add(measure(read_values(self.pair.found, low, high), read_values(view, low, high)))
        return sums

    def reordered(self, order: RowOrder) -> Tensor:
        """The reference with its rows in another order."""
        reference = self.pair.reference
        return ArrangedTensor(reference.name, reference.shape, Rows((reference,), order), reference.position)


def explain(pair: Pair, compared: Comparison, others: Mapping[str, Pair], *, gguf: bool) -> Fault:
    """Why a tensor differs in more than a few places.

    Args:
        compared: the whole tensor.
        others: all tensors by canonical name.
        gguf: whether the artifact is a GGUF file, whose order of rows differs from that of a folder.
    """
    suspect = _Suspect(pair, compared.sums)
    found = _find_rounding(suspect) or _find_scale(suspect)
    if found is None and not compared.sums.relative_rmse <= suspect.likeness:
        found = (
            _find_rotary_order(suspect, gguf)
            or _find_other(suspect, others, gguf)
            or _find_transposition(suspect)
            or _find_moved_rows(suspect)
        )
    return found or Fault("different", _measures(compared, "blocks" if suspect.kind.is_quantized else "values"))


def _measures(compared: Comparison, units: str) -> str:
    sums, count = compared.sums, compared.damaged or compared.unequal
    first = f", the first in row {compared.examples[0].row}" if compared.examples else ""
    return (
        f"{count} of {compared.units} {units} differ{first}: relative RMSE {sums.relative_rmse:.3g}, "
        f"cosine {sums.cosine:.4f}, largest error {sums.largest:.3g}"
    )


def _find_rounding(suspect: _Suspect) -> Fault | None:
    """Check for rounding through another float type, which changes a float32 reference."""
    reference = suspect.pair.reference
    if suspect.kind.is_quantized or suspect.sums.relative_rmse > _ROUNDING:
        return None
    for kind in (BlockType.BF16, BlockType.F16):
        if kind.name in (suspect.pair.found.dtype, reference.dtype):
            continue
        try:
            view = ConvertedTensor(ConvertedTensor(reference, kind), suspect.kind)
            if suspect.distance(view) == suspect.errors(view).squared_errors == 0:
                what = f"went through {kind.name} on its way from {reference.dtype} to {suspect.kind.name}"
                return Fault("rounded", what, severity="warn")
        except (QuantizationError, SourceError):
            continue  # the tensor cannot have been rounded to a type that cannot hold its values
    return None


def _find_scale(suspect: _Suspect) -> Fault | None:
    """Check for a constant factor or a constant offset; both follow from the sums."""
    sums = suspect.sums
    is_scaled = sums.scaled_rmse <= suspect.tolerance and abs(sums.factor - 1) > (
        factor_slack(sums) if suspect.kind.is_quantized else 3 * sums.scaled_rmse
    )
    is_shifted = sums.shifted_rmse <= suspect.tolerance and 4 * sums.shifted_rmse < sums.relative_rmse
    # With norms of ones, adding and multiplying look the same; the common mistake is adding or subtracting one.
    if is_shifted and (abs(abs(sums.offset) - 1) < suspect.tolerance or not is_scaled):
        return Fault("offset", f"is the reference with {sums.offset:+.6g} added to every value")
    if is_scaled:
        return Fault("scaled", f"is the reference times {sums.factor:.6g}")
    return None


def _find_rotary_order(suspect: _Suspect, gguf: bool) -> Fault | None:
    """Check for query or key rows in the order of the other rotation."""
    order = suspect.pair.place.order
    if order is None:
        return None
    said = _SAID_OF_GGUF if gguf else _SAID_OF_FOLDERS
    for tried, what in zip((order, Inverse((order,))), said, strict=True):
        if suspect.is_like(suspect.reordered(tried)):
            return Fault("rows_permuted", what)
    return None


def _find_other(suspect: _Suspect, others: Mapping[str, Pair], gguf: bool) -> Fault | None:
    """Check for another tensor of the reference with the same shape."""
    own = suspect.pair
    candidates: dict[tuple[str, bool], Tensor] = {}
    for name, other in others.items():
        if other is own or other.reference.shape != own.reference.shape:
            continue
        candidates[name, False] = other.reference
        if gguf and (own.place.order is None) != (other.place.order is None):
            candidates[name, True] = _in_its_place(other, own)
    distances = {name: suspect.distance(other) for name, other in candidates.items()}
    # Models that were deepened have very similar layers: test the nearest first.
    for candidate in sorted(candidates, key=distances.__getitem__):
        if not distances[candidate] <= suspect.likeness:
            break
        if suspect.errors(candidates[candidate]).relative_rmse <= suspect.likeness:
            return Fault("swapped", f"holds {candidate[0]}", candidate[0])
    return None


def _in_its_place(other: Pair, own: Pair) -> Tensor:
    """A tensor of the reference as it looks in the place of another, if the rows of one of them are interleaved."""
    reference = other.reference
    order = other.place.order if own.place.order is None else Inverse((own.place.order,))
    return ArrangedTensor(reference.name, reference.shape, Rows((reference,), order), reference.position)


def _find_transposition(suspect: _Suspect) -> Fault | None:
    shape = suspect.pair.found.shape
    if suspect.is_matrix and shape[0] == shape[1] and suspect.is_like(TransposedTensor(suspect.pair.reference)):
        return Fault("transposed", "has its rows and columns exchanged")
    return None


def _find_moved_rows(suspect: _Suspect) -> Fault | None:
    """Check for rows of the reference in other places: all shifted by the same number, or in an unknown order."""
    if not suspect.is_matrix:
        return None
    rows, places = _match_rows(suspect)
    moved = places != rows
    # A few rows may be missing or from another tensor.
    if 4 * len(rows) < 3 * _mapped(suspect) or 2 * moved.sum() < len(rows):
        return None
    shift = int(np.median((places - rows)[moved]))
    index = np.clip(np.arange(suspect.count) + shift, 0, suspect.count - 1)
    begin, end = max(0, -shift), min(suspect.count, suspect.count - shift)
    if suspect.errors(suspect.reordered(Listed.of(index)), begin, end).relative_rmse <= suspect.likeness:
        return Fault("rows_shifted", f"has its rows shifted: row r holds the reference's row r{shift:+d}")
    example = int(moved.argmax())
    return Fault(
        "rows_permuted",
        f"has its rows in another order: row {rows[example]} holds the reference's row {places[example]}, "
        f"and of {_mapped(suspect)} rows looked at {int(moved.sum())} are not in their place",
    )


def _mapped(suspect: _Suspect) -> int:
    return min(_MAPPED_ROWS, suspect.count)


def _match_rows(suspect: _Suspect) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a sample that also exist in the reference, and their places there.

    Rows are compared by their products with a few random vectors, which is enough to find the nearest row; then the
    values are compared.
    """
    pair = suspect.pair
    vectors = np.random.default_rng(0).standard_normal((pair.reference.shape[-1], _PROJECTIONS), dtype=np.float32)
    marks = np.concatenate(
        [read_values(pair.reference, low, high) @ vectors for low, high in row_ranges(pair.reference)]
    )
    rows = choose_rows(pair.found, _MAPPED_ROWS)
    values = decode(pair.found, read_scattered(pair.found, rows))
    lengths = (marks * marks).sum(axis=1)
    places = np.array([(lengths - 2 * (marks @ mark)).argmin() for mark in values @ vectors])
    kept = [
        measure(values[i], read_values(pair.reference, place, place + 1)).relative_rmse <= suspect.likeness
        for i, place in enumerate(places.tolist())
    ]
    return rows[kept], places[kept]
