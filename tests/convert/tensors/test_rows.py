"""Arrangements of rows, and reading through them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mconv.convert.tensors.nodes import ConstantTensor
from mconv.convert.tensors.orders import Consecutive, GroupedQkv, Inverse, Listed, RotaryInterleaved, index_of, invert
from mconv.convert.tensors.rows import Rows


def source(name: str, rows: int, first: int) -> ConstantTensor:
    """A tensor whose values tell their row."""
    values = np.arange(first, first + rows, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    return ConstantTensor.of(name, values)


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (4, 16), (32, 128)])
def test_interleaving_pairs_the_two_halves_of_each_head(heads: int, head_dim: int) -> None:
    index = index_of(RotaryInterleaved(heads, head_dim)).reshape(heads, head_dim // 2, 2)
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
    rows = Rows(sources, None if index is None else Listed.of(index))
    start = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(start + 1, total))
    expected = (np.arange(total) if index is None else index)[start:stop]
    assert rows.count == total
    assert (rows.read(start, stop)[:, 0] == expected).all()


@given(st.data())
def test_a_part_of_a_part_reads_as_those_rows_of_the_whole(data: st.DataObject) -> None:
    order = data.draw(st.sampled_from([None, RotaryInterleaved(3, 8), Consecutive(5, 29)]))
    whole = Rows((source("t", 40, 0),), order)
    start = data.draw(st.integers(0, whole.count - 1))
    stop = data.draw(st.integers(start + 1, whole.count))
    inner = data.draw(st.integers(0, stop - start - 1))
    part = whole.part(start, stop).part(inner, stop - start)
    assert part.count == stop - start - inner
    assert (part.read(0, part.count) == whole.read(start + inner, stop)).all()
    assert part.locate(0) == whole.locate(start + inner)


def test_the_parts_of_a_fused_matrix_take_each_row_once() -> None:
    parts = tuple(GroupedQkv(part, 6, 2, 4) for part in ("query", "key", "value"))
    places = [index_of(part) for part in parts]
    assert [len(rows) for rows in places] == [24, 8, 8]
    assert places[0][:4].tolist() == [0, 1, 2, 3]
    assert places[1].tolist() == [12, 13, 14, 15, 32, 33, 34, 35]
    fused = Inverse(parts)
    assert (np.concatenate(places)[index_of(fused)] == np.arange(40)).all()


def test_orders_are_values() -> None:
    one, other = (
        Rows((source("t", 24, 0),), RotaryInterleaved(3, 8)),
        Rows((source("t", 24, 0),), RotaryInterleaved(3, 8)),
    )
    assert one == other
    assert hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != Rows(one.sources, RotaryInterleaved(6, 4))
