"""Rows, and the named arrangements of rows: all that ever separates two layouts of one model.

Row `r` of a target is row `index[r]` of its concatenated sources; no index means as they stand. A value is never
touched, so every arrangement is undone exactly by `invert`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from mconv.convert.tensors.nodes import Tensor, row_count

Index = np.ndarray | range | None
"""Source row of each target row (int64, or a range where they follow each other), or None for the identity."""

# Two wanted rows this close are read in one go: a seek costs more than the bytes between them.
_READ_THROUGH_ROWS = 256


def rope_interleave(heads: int, head_dim: int) -> np.ndarray:
    """Rows of Q or K from Hugging Face's half-split rotary order to GGUF's interleaved one.

    transformers rotates value i with value i + head_dim/2; llama.cpp's `llama` architectures rotate neighbours 2i and
    2i+1. Within each head, target row 2i + s is source row s * head_dim/2 + i.

    Returns:
        int64 index of heads * head_dim rows.
    """
    rows = np.arange(heads * head_dim, dtype=np.int64).reshape(heads, 2, head_dim // 2)
    return rows.swapaxes(1, 2).reshape(-1)


def qkv_by_group(heads: int, kv_heads: int, head_dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the rows of Q, K and V stand in Megatron-Core's fused linear_qkv.

    Each key-value head has its group of query heads before it: [q_0 .. q_n-1, k, v], each head_dim rows (Megatron-LM
    megatron/core/transformer/attention.py, `get_query_key_value_tensors`). Rotary order is Hugging Face's.

    Returns:
        Three int64 indices, of heads * head_dim, kv_heads * head_dim and kv_heads * head_dim rows.
    """
    queries = heads // kv_heads
    rows = np.arange((heads + 2 * kv_heads) * head_dim, dtype=np.int64).reshape(kv_heads, queries + 2, head_dim)
    return rows[:, :queries].reshape(-1), rows[:, queries].reshape(-1), rows[:, queries + 1].reshape(-1)


def invert(index: np.ndarray) -> np.ndarray:
    """The index that undoes a permutation of rows."""
    return np.argsort(index, kind="stable")


@dataclass(frozen=True)
class Rows:
    """The rows of one target tensor, wherever they lie.

    Attributes:
        sources: tensors of one dtype and one row length, in the order of their concatenation (stacked experts, say).
        index: source row of each target row (a range has no steps), or None for the concatenation as it stands.
    """

    sources: tuple[Tensor, ...]
    index: Index = None

    @property
    def dtype(self) -> str:
        """Storage type of every row."""
        return self.sources[0].dtype

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(row_count(source.shape) for source in self.sources) if self.index is None else len(self.index)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Target rows [start, stop) as stored: (stop - start, row length)."""
        if self.index is None:
            return self._span(start, stop)
        wanted = self.index[start:stop]
        if isinstance(wanted, range):
            return self._span(wanted.start, wanted.stop)
        first, last = int(wanted.min()), int(wanted.max()) + 1
        if last - first <= len(wanted) + _READ_THROUGH_ROWS:
            return self._span(first, last)[wanted - first]
        order = np.argsort(wanted, kind="stable")
        ascending = wanted[order]
        cuts = np.flatnonzero(np.diff(ascending) > _READ_THROUGH_ROWS) + 1
        runs = [self._span(int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in np.split(ascending, cuts)]
        return np.concatenate(runs)[invert(order)]

    def part(self, start: int, stop: int) -> Rows:
        """Target rows [start, stop) alone."""
        return Rows(self.sources, (range(self.count) if self.index is None else self.index)[start:stop])

    def locate(self, row: int) -> tuple[Tensor, int]:
        """The source of a target row, and its row there."""
        place = row if self.index is None else int(self.index[row])
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


@dataclass(frozen=True)
class ArrangedTensor:
    """A tensor whose rows lie elsewhere in another order.

    Attributes:
        name: canonical (Hugging Face) name.
        shape: lengths of the axes, slowest first.
        rows: where its rows lie.
        position: its place in the order of the source.
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
