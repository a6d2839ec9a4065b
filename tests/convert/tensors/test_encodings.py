"""Encodings by name: what they make of rows, and back."""

from __future__ import annotations

import numpy as np
import pytest

from mconv.convert.errors import FormatError, QuantizationError, SourceError
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.encodings import ConvertedTensor, RowBlock, find_encoding, widen
from mconv.convert.tensors.nodes import ConstantTensor
from mconv.convert.tensors.rows import Rows, Target

WIDTH = 256


def block(values: np.ndarray, first_row: int = 0) -> RowBlock:
    source = ConstantTensor.of("model.t", values)
    return RowBlock(Target("t", values.shape, Rows((source,))), first_row, np.ascontiguousarray(values, np.float32))


def noise(rows: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("kind", list(BlockType), ids=lambda kind: kind.name)
def test_every_type_of_ggml_is_an_encoding_of_one_plane(kind: BlockType) -> None:
    encoding = find_encoding(kind.name)
    assert encoding.name == kind.name
    assert encoding.plane_row_bytes(WIDTH) == (kind.row_bytes(WIDTH),)
    if kind.is_quantized:
        with pytest.raises(QuantizationError, match="cannot be divided into blocks"):
            encoding.plane_row_bytes(17)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K"])
def test_what_is_encoded_is_decoded(name: str) -> None:
    values, encoding = noise(), find_encoding(name)
    planes = encoding.encode(block(values))
    assert [plane.shape for plane in planes] == [(len(values), size) for size in encoding.plane_row_bytes(WIDTH)]
    decoded = encoding.decode(planes, WIDTH)
    error = float(np.abs(decoded - values).max())
    assert error <= {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 2e-2, "Q4_K": 0.3, "Q6_K": 0.1}[name]
    # What is encoded already passes through.
    stored = RowBlock(block(values).target, 0, planes[0], name)
    if name not in ("F32", "F16", "BF16"):
        assert encoding.encode(stored)[0] is planes[0] or (encoding.encode(stored)[0] == planes[0]).all()
        assert (stored.floats == decoded).all()


def test_rows_are_encoded_alone() -> None:
    values = noise(6)
    for name in ("F16", "Q4_K", "IQ4_XS"):
        whole = find_encoding(name).encode(block(values))[0]
        parts = [find_encoding(name).encode(block(values[row : row + 1], row))[0] for row in range(6)]
        assert (np.concatenate(parts) == whole).all()


def test_importance_counts_where_a_type_has_use_for_it() -> None:
    values, weights = noise(), np.linspace(0.01, 1, WIDTH, dtype=np.float32) ** 8
    for name, counts in (("Q4_K", True), ("IQ4_XS", True), ("Q8_0", False), ("F16", False)):
        plain = find_encoding(name).encode(block(values))[0]
        weighed = find_encoding(name).encode(block(values), weights)[0]
        assert (not (plain == weighed).all()) == counts, name


@pytest.mark.parametrize(("name", "value"), [("F16", 1e5), ("BF16", 3.4e38), ("Q8_0", 1e30), ("Q4_K", 1e30)])
def test_a_value_beyond_the_range_is_named(name: str, value: float) -> None:
    values = noise()
    values[2, 5] = value
    with pytest.raises(QuantizationError, match=rf"tensor model\.t \(t\), row 2, column 5 is too large for {name}"):
        find_encoding(name).encode(block(values))


def test_values_that_are_not_finite_are_named() -> None:
    values = noise()
    values[3, 7] = np.nan
    with pytest.raises(SourceError, match=r"tensor model\.t \(t\), row 3, column 7 is nan"):
        block(values).check_finite()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(FormatError, match="unknown encoding 'Q4_X'"):
        find_encoding("Q4_X")


def test_a_converted_tensor_is_read_in_its_type() -> None:
    values = noise()
    source = ConstantTensor.of("t", values)
    converted = ConvertedTensor(source, BlockType.BF16)
    assert (converted.dtype, converted.shape, converted.name) == ("BF16", values.shape, "t")
    assert np.abs(widen(converted.read(1, 3)) - values[1:3]).max() < 2e-2
    values[2, 0] = 1e6
    with pytest.raises(QuantizationError, match="row 2, column 0 is too large for F16"):
        ConvertedTensor(ConstantTensor.of("t", values), BlockType.F16).read(0, 4)
