"""The GGUF container: written as gguf-py reads it, read without trusting it."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mconv.convert.containers.gguf import TensorInfo, encode_header, padded, read_gguf
from mconv.convert.errors import MconvError
from mconv.convert.model.metadata import Value, ValueType, array, boolean, float32, string, uint32
from mconv.convert.tensors.block_types import BlockType

METADATA = {
    "general.architecture": string("llama"),
    "a.flag": boolean(True),
    "a.float": float32(0.5),
    "a.count": uint32(7),
    "a.long": Value(ValueType.INT64, -(1 << 40)),
    "a.words": array(ValueType.STRING, ["x", "\u00e9\u4e2d", ""]),
    "a.bytes": Value(ValueType.STRING, b"\xff\xfe"),
    "a.numbers": array(ValueType.INT32, [1, -2, 3]),
}
INFOS = [TensorInfo("one", (3, 64), BlockType.Q8_0, 0), TensorInfo("two", (5,), BlockType.F32, padded(3 * 68, 32))]


def write(path: Path, header: bytes, data: bytes) -> Path:
    path.write_bytes(header + data)
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", encode_header(METADATA, INFOS), bytes(range(224)) + bytes(32))
    file = read_gguf(path)
    assert file.metadata == METADATA
    assert list(file.metadata) == list(METADATA)
    assert [(tensor.name, tensor.shape, tensor.dtype) for tensor in file.tensors] == [
        ("one", (3, 64), "Q8_0"),
        ("two", (5,), "F32"),
    ]
    assert file.tensors[0].read(1, 2).tobytes() == bytes(range(68, 136))


def test_gguf_py_reads_what_is_written(tmp_path: Path) -> None:
    metadata = {key: value for key, value in METADATA.items() if key != "a.bytes"}
    path = write(tmp_path / "a.gguf", encode_header(metadata, INFOS), bytes(256))
    reader = gguf.GGUFReader(path)
    assert reader.fields["a.words"].contents() == ["x", "\u00e9\u4e2d", ""]
    assert reader.fields["a.long"].contents() == -(1 << 40)
    assert [(tensor.name, tensor.tensor_type.name) for tensor in reader.tensors] == [("one", "Q8_0"), ("two", "F32")]


def test_what_gguf_py_writes_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.add_array("some.floats", [0.5, 1.5])
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("t", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "b.gguf")
    assert file.metadata["some.floats"].content == [0.5, 1.5]
    assert (file.tensors[0].read(0, 3) == values).all()


def hostile(counts: tuple[int, int], body: bytes) -> bytes:
    """A header with these counts of tensors and pairs."""
    return b"GGUF" + struct.pack("<IQQ", 3, *counts) + body


STRING = struct.pack("<Q", 1) + b"k"
HOSTILE = {
    "empty": b"",
    "not GGUF": b"PK\x03\x04" + bytes(64),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "a future version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    "2^63 tensors": hostile((1 << 63, 0), bytes(64)),
    "2^63 pairs": hostile((0, 1 << 63), bytes(64)),
    "a key of 2^62 bytes": hostile((0, 1), struct.pack("<Q", 1 << 62) + bytes(64)),
    "an array of 2^61 strings": hostile((0, 1), STRING + struct.pack("<IIQ", 9, 8, 1 << 61) + bytes(64)),
    "an array of 2^61 numbers": hostile((0, 1), STRING + struct.pack("<IIQ", 9, 4, 1 << 61) + bytes(64)),
    "nested arrays": hostile((0, 1), STRING + struct.pack("<IIQ", 9, 9, 1) + bytes(64)),
    "an unknown value type": hostile((0, 1), STRING + struct.pack("<I", 77) + bytes(64)),
    "a key twice": hostile((0, 2), 2 * (STRING + struct.pack("<II", 4, 1))),
    "a million dimensions": hostile((1, 0), STRING + struct.pack("<I", 1_000_000) + bytes(64)),
    "a shape whose product wraps": hostile((1, 0), STRING + struct.pack("<IQQIQ", 2, 1 << 33, 1 << 33, 0, 0)),
    "a dimension of zero": hostile((1, 0), STRING + struct.pack("<IQIQ", 1, 0, 0, 0)),
    "an unknown tensor type": hostile((1, 0), STRING + struct.pack("<IQIQ", 1, 32, 250, 0)),
    "a crooked offset": hostile((1, 0), STRING + struct.pack("<IQIQ", 1, 1, 0, 3) + bytes(64)),
    "data beyond the end": hostile((1, 0), STRING + struct.pack("<IQIQ", 1, 4096, 0, 0)),
    "a row of half a block": hostile((1, 0), STRING + struct.pack("<IQIQ", 1, 16, 8, 0) + bytes(64)),
    "an alignment of three": hostile((0, 1), struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 3)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(MconvError) as error:
        read_gguf(write(tmp_path / "bad.gguf", HOSTILE[name], b""))
    assert error.value.exit_code == 3
    assert "bad.gguf" in error.value.what
    assert error.value.hint


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_file_never_ends_in_a_traceback(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = bytearray(encode_header(METADATA, INFOS) + bytes(256))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 257))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    path = write(tmp_path_factory.getbasetemp() / "fuzzed.gguf", bytes(whole[:cut]), b"")
    try:
        read_gguf(path)
    except MconvError as error:
        assert error.exit_code == 3
