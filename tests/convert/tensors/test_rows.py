"""Arrangements of rows, and reading through them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mconv.convert.tensors.nodes import ArrayTensor
from mconv.convert.tensors.rows import Rows, invert, rope_interleave


def source(name: str, rows: int, first: int) -> ArrayTensor:
    """A tensor whose values tell their row."""
    return ArrayTensor(name, np.arange(first, first + rows, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32))


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (4, 16), (32, 128)])
def test_interleaving_pairs_the_two_halves_of_each_head(heads: int, head_dim: int) -> None:
    index = rope_interleave(heads, head_dim).reshape(heads, head_dim // 2, 2)
    for head in range(heads):
        assert (index[head, :, 1] - index[head, :, 0] == head_dim // 2).all()
        assert index[head, 0, 0] == head * head_dim
    assert sorted(index.ravel()) == list(range(heads * head_dim))


@given(st.permutations(range(24)))
def test_an_arrangement_is_undone_by_its_inverse(order: list[int]) -> None:
    index = np.array(order)
    rows = np.random.default_rng(0).normal(size=(24, 3))
    assert (rows[index][invert(index)] == rows).all()


@given(st.data())
def test_any_row_range_reads_as_the_whole_does(data: st.DataObject) -> None:
    heights = data.draw(st.lists(st.integers(1, 600), min_size=1, max_size=4))
    starts = np.cumsum([0, *heights[:-1]])
    sources = tuple(source(f"t{i}", rows, first) for i, (rows, first) in enumerate(zip(heights, starts, strict=True)))
    total = sum(heights)
    index = data.draw(st.none() | st.just(np.random.default_rng(total).permutation(total)))
    rows = Rows(sources, index)
    start = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(start + 1, total))
    expected = (np.arange(total) if index is None else index)[start:stop]
    assert rows.count == total
    assert (rows.read(start, stop)[:, 0] == expected).all()
