"""Orders of rows, as values: the source row of each target row.

The arrays can be long, and many tensors of a plan have one; so a plan stores the parameters of an order, and the array
is computed when rows are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np

from mconv.convert.tensors.plain import plain


class RowOrder(Protocol):
    """An order of rows. Orders are compared, hashed and pickled by their parameters."""

    def __hash__(self) -> int: ...

    @property
    def count(self) -> int:
        """Number of target rows."""

    def compute(self) -> np.ndarray:
        """Source row of each target row, int64 (count,)."""


@lru_cache(maxsize=256)
def index_of(order: RowOrder) -> np.ndarray:
    """Source row of each target row, int64 (count,), read-only; the most recent results are cached."""
    index = order.compute()
    index.setflags(write=False)
    return index


@plain
@dataclass(frozen=True)
class RotaryInterleaved:
    """Rows of Q or K from Hugging Face's half-split rotary order to GGUF's interleaved one.

    transformers rotates value i with value i + head_dim/2; llama.cpp's `llama` architectures rotate neighbours 2i and
    2i+1. Within each head, target row 2i + s is source row s * head_dim/2 + i.

    Example:
        One head of four rows: the target rows are the source rows 0, 2, 1, 3.
    """

    heads: int
    head_dim: int

    @property
    def count(self) -> int:
        """heads * head_dim."""
        return self.heads * self.head_dim

    def compute(self) -> np.ndarray:
        """See the class."""
        rows = np.arange(self.count, dtype=np.int64).reshape(self.heads, 2, self.head_dim // 2)
        return rows.swapaxes(1, 2).reshape(-1)


@plain
@dataclass(frozen=True)
class GroupedQkv:
    """The positions of the rows of Q, K or V in Megatron-Core's fused linear_qkv.

    Each key-value head has its group of query heads before it: [q_0 .. q_n-1, k, v], each head_dim rows (Megatron-LM
    megatron/core/transformer/attention.py, `get_query_key_value_tensors`). Rotary order is Hugging Face's.

    Attributes:
        part: which of the three matrices.
    """

    part: Literal["query", "key", "value"]
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def count(self) -> int:
        """Number of rows of the part."""
        return (self.heads if self.part == "query" else self.kv_heads) * self.head_dim

    def compute(self) -> np.ndarray:
        """See the class."""
        queries = self.heads // self.kv_heads
        shape = (self.kv_heads, queries + 2, self.head_dim)
        rows = np.arange((self.heads + 2 * self.kv_heads) * self.head_dim, dtype=np.int64).reshape(shape)
        places = {"query": slice(queries), "key": slice(queries, queries + 1), "value": slice(queries + 1, None)}
        return rows[:, places[self.part]].reshape(-1)


@plain
@dataclass(frozen=True)
class Inverse:
    """The inverse of the concatenation of some orders, which together use each row once."""

    orders: tuple[RowOrder, ...]

    @property
    def count(self) -> int:
        """The number of rows of all orders."""
        return sum(order.count for order in self.orders)

    def compute(self) -> np.ndarray:
        """See the class."""
        return invert(np.concatenate([index_of(order) for order in self.orders]))


@plain
@dataclass(frozen=True)
class PartOf:
    """Target rows [start, stop) of another order."""

    order: RowOrder
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Their number."""
        return self.stop - self.start

    def compute(self) -> np.ndarray:
        """See the class."""
        return index_of(self.order)[self.start : self.stop].copy()


@plain
@dataclass(frozen=True)
class Consecutive:
    """The source rows [start, stop), in order."""

    start: int
    stop: int

    @property
    def count(self) -> int:
        """Their number."""
        return self.stop - self.start

    def compute(self) -> np.ndarray:
        """See the class."""
        return np.arange(self.start, self.stop, dtype=np.int64)


@plain
@dataclass(frozen=True)
class Listed:
    """An arbitrary list of source rows, for a look-up.

    Attributes:
        rows: their indices, int64 in bytes; see `of`.
    """

    rows: bytes

    @classmethod
    def of(cls, rows: np.ndarray) -> Listed:
        """The order of these row indices, (count,)."""
        return cls(np.ascontiguousarray(rows, np.int64).tobytes())

    @property
    def count(self) -> int:
        """Their number."""
        return len(self.rows) // 8

    def compute(self) -> np.ndarray:
        """See the class."""
        return np.frombuffer(self.rows, np.int64).copy()


def part_of(order: RowOrder, start: int, stop: int) -> RowOrder:
    """Target rows [start, stop) of an order, in the shortest form."""
    if isinstance(order, (Consecutive, PartOf)):
        first = order.start
        whole = (order.start, order.stop) == (first + start, first + stop)
        if whole:
            return order
        if isinstance(order, PartOf):
            return PartOf(order.order, first + start, first + stop)
        return Consecutive(first + start, first + stop)
    return order if (start, stop) == (0, order.count) else PartOf(order, start, stop)


def invert(index: np.ndarray) -> np.ndarray:
    """The index that undoes a permutation of rows."""
    return np.argsort(index, kind="stable")
