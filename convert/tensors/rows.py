"""Rows: two layouts of a model differ only in the order of rows.

Row `r` of a target is row `index[r]` of its concatenated sources; without an order, it is row `r`. Values are never
changed, so every arrangement can be inverted exactly.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from mconv.convert.model.roles import Role
from mconv.convert.tensors.nodes import Tensor, row_count
from mconv.convert.tensors.orders import Consecutive, RowOrder, index_of, invert, part_of
from mconv.convert.tensors.plain import plain

# Rows this close together are read at once: a seek costs more than the bytes between them.
_READ_THROUGH_ROWS = 256


@plain
@dataclass(frozen=True)
class Rows:
    """The rows of one target tensor, from one or more sources.

    Attributes:
        sources: tensors of the same dtype and row length, in the order of concatenation, such as stacked experts.
        order: the source row of each target row; None for the order of the concatenation.
    """

    sources: tuple[Tensor, ...]
    order: RowOrder | None = None

    @property
    def dtype(self) -> str:
        """Storage type of every row."""
        return self.sources[0].dtype

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.order.count if self.order else sum(row_count(source.shape) for source in self.sources)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Target rows [start, stop) as stored: (stop - start, row length)."""
        if self.order is None:
            return self._span(start, stop)
        if isinstance(self.order, Consecutive):
            return self._span(self.order.start + start, self.order.start + stop)
        wanted = index_of(self.order)[start:stop]
        first, last = int(wanted.min()), int(wanted.max()) + 1
        if last - first <= len(wanted) + _READ_THROUGH_ROWS:
            return self._span(first, last)[wanted - first]
        order = np.argsort(wanted, kind="stable")
        ascending = wanted[order]
        cuts = np.flatnonzero(np.diff(ascending) > _READ_THROUGH_ROWS) + 1
        runs = [self._span(int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in np.split(ascending, cuts)]
        return np.concatenate(runs)[invert(order)]

    def part(self, start: int, stop: int) -> Rows:
        """Only the target rows [start, stop)."""
        if (start, stop) == (0, self.count):
            return self
        return Rows(self.sources, part_of(self.order or Consecutive(0, self.count), start, stop))

    def locate(self, row: int) -> tuple[Tensor, int]:
        """The source tensor of a target row, and the row in it."""
        place = row if self.order is None else int(index_of(self.order)[row])
        found = bisect_right(self._starts(), place) - 1
        return self.sources[found], place - self._starts()[found]

    def _span(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of the concatenated sources."""
        pieces = []
        for first, source in zip(self._starts(), self.sources, strict=True):
            low, high = max(start - first, 0), min(stop - first, row_count(source.shape))
            if low < high:
                pieces.append(source.read(low, high))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _starts(self) -> Sequence[int]:
        return [0, *accumulate(row_count(source.shape) for source in self.sources[:-1])]


@plain
@dataclass(frozen=True)
class ArrangedTensor:
    """A tensor whose rows are stored in another order.

    Attributes:
        name: canonical (Hugging Face) name.
        shape: lengths of the axes, slowest first.
        rows: where its rows are stored.
        position: its position in the order of the source.
    """

    name: str
    shape: tuple[int, ...]
    rows: Rows
    position: tuple[int, int]

    @property
    def dtype(self) -> str:
        """Storage type of every row."""
        return self.rows.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as stored: (stop - start, row length)."""
        return self.rows.read(start, stop)


@plain
@dataclass(frozen=True)
class Target:
    """One tensor of the target layout: its name there, its shape, the source of its rows, and its role.

    Attributes:
        role: the role of the tensor in the model; None if unknown, or if several are fused.
    """

    name: str
    shape: tuple[int, ...]
    rows: Rows
    role: Role | None = None

    def place(self, row: int, column: int) -> str:
        """The name of one value, by its place in the source, where a user can find it."""
        source, source_row = self.rows.locate(row)
        also = f" ({self.name})" if self.name != source.name else ""
        return f"tensor {source.name}{also}, row {source_row}, column {column}"
