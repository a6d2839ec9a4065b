"""A square tensor, transposed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mconv.convert.tensors.nodes import Tensor
from mconv.validate.weights.values import read_values, row_ranges


@dataclass(frozen=True)
class TransposedTensor:
    """A `Tensor` whose rows are the columns of another: reading any range takes a pass over the whole source."""

    source: Tensor

    @property
    def name(self) -> str:
        """The name of the source."""
        return self.source.name

    @property
    def dtype(self) -> str:
        """Always F32."""
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the source, which is square."""
        return self.source.shape

    @property
    def position(self) -> tuple[int, int]:
        """The position of the source."""
        return self.source.position

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop): columns of the source."""
        rows = np.empty((stop - start, self.shape[1]), np.float32)
        for low, high in row_ranges(self.source):
            rows[:, low:high] = read_values(self.source, low, high)[:, start:stop].T
        return rows
