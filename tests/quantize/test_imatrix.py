"""Importance matrices of both forms, whole and damaged."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mconv.convert.containers.gguf import read_gguf
from mconv.convert.errors import FormatError, MconvError, QuantizationError, SourceError
from mconv.convert.model.metadata import string, uint32
from mconv.convert.tensors.nodes import row_count
from mconv.quantize.filetypes import FileType
from mconv.quantize.ggml import quantize_rows
from mconv.quantize.imatrix import ImportanceMatrix, read_imatrix
from mconv.quantize.mixture import ModelFacts

from support.gguf_imatrix import write_gguf_imatrix
from support.llama_quantize import Options, quantize, write_model

GENERATOR = np.random.default_rng(7)
SUMS = {
    "blk.0.attn_q.weight": GENERATOR.gamma(0.5, 900, (1, 256)).astype(np.float32),
    "blk.0.ffn_down_exps.weight": GENERATOR.gamma(0.5, 300, (4, 256)).astype(np.float32),
}
COUNTS = {
    "blk.0.attn_q.weight": np.array([[1536]], np.float32),
    "blk.0.ffn_down_exps.weight": np.array([[700], [0], [3], [833]], np.float32),
}


def write_gguf_form(
    path: Path, sums: dict[str, np.ndarray] = SUMS, counts: dict[str, np.ndarray] = COUNTS, **members: Any
) -> Path:
    """As llama-imatrix writes it."""
    return write_gguf_imatrix(path, sums, counts, **members)


def legacy_entry(name: str, calls: int, values: np.ndarray) -> bytes:
    encoded = name.encode()
    head = struct.pack("<i", len(encoded)) + encoded + struct.pack("<ii", calls, values.size)
    return head + values.astype("<f4").tobytes()


def write_legacy_form(path: Path, calls: int = 3, tail: bytes = struct.pack("<ii", 3, 8) + b"calib.txt"[:8]) -> Path:
    """As llama-imatrix writes it with `--output-format dat`."""
    entries = [legacy_entry(name, calls, values) for name, values in SUMS.items()]
    path.write_bytes(struct.pack("<i", len(entries)) + b"".join(entries) + tail)
    return path


def test_gguf_form_is_sums_over_counts(tmp_path: Path) -> None:
    matrix = read_imatrix(write_gguf_form(tmp_path / "calibration.gguf"))
    assert matrix.entries.keys() == SUMS.keys()
    plain = matrix.weights_of("blk.0.attn_q.weight", (64, 256))
    assert plain is not None and plain.dtype == np.float32
    assert plain.tolist() == [[float(np.float32(value) / np.float32(1536)) for value in SUMS["blk.0.attn_q.weight"][0]]]
    experts = matrix.weights_of("blk.0.ffn_down_exps.weight", (4, 64, 256))
    assert experts is not None and experts.shape == (4, 256)
    assert (experts[1] == 1).all(), "an expert that saw no token weighs all columns alike"
    assert experts[2].tolist() == [float(np.float32(v) / np.float32(3)) for v in SUMS["blk.0.ffn_down_exps.weight"][2]]
    assert (matrix.file_name, matrix.datasets, matrix.chunks) == ("calibration.gguf", ("wiki.train.raw",), 3)


def test_legacy_form_is_sums_over_calls(tmp_path: Path) -> None:
    matrix = read_imatrix(write_legacy_form(tmp_path / "imatrix.dat"))
    assert matrix.entries.keys() == SUMS.keys()
    experts = matrix.weights_of("blk.0.ffn_down_exps.weight", (4, 64, 256))
    assert experts is not None
    sums = SUMS["blk.0.ffn_down_exps.weight"]
    assert experts.tolist() == [[float(np.float32(value) / np.float32(3)) for value in row] for row in sums]
    assert (matrix.datasets, matrix.chunks) == (("calib.tx",), 3)


def test_legacy_form_without_calls_or_tail(tmp_path: Path) -> None:
    matrix = read_imatrix(write_legacy_form(tmp_path / "imatrix.dat", calls=0, tail=b""))
    assert matrix.entries["blk.0.attn_q.weight"].tobytes() == SUMS["blk.0.attn_q.weight"].tobytes()
    assert (matrix.datasets, matrix.chunks) == ((), 0)


@pytest.mark.parametrize("write", [write_gguf_form, write_legacy_form])
def test_values_lead_to_the_bytes_of_llama_quantize(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    matrix = read_imatrix(write(tmp_path / "imatrix"))
    name = "blk.0.ffn_down_exps.weight"
    weights = np.random.default_rng(8).normal(0, 0.02, (4, 8, 256)).astype(np.float32)
    write_model(tmp_path / "f32.gguf", ModelFacts("llama", 1, 4, 4, 4), {name: weights})
    quantize(tmp_path / "f32.gguf", tmp_path / "q.gguf", FileType.Q5_K_S, Options(imatrix=matrix.entries))
    (written,) = read_gguf(tmp_path / "q.gguf").tensors
    importance = matrix.weights_of(name, weights.shape)
    assert importance is not None and written.dtype == "Q5_K"
    ours = np.empty((4, 8, 176), np.uint8)
    for expert in range(4):
        quantize_rows(FileType.Q5_K_S.default, weights[expert], importance[expert], ours[expert])
    assert ours.tobytes() == written.read(0, row_count(written.shape)).tobytes()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe is not a regular file"):
        read_imatrix(tmp_path / "pipe")


def test_lookup_knows_what_is_missing_and_what_does_not_fit() -> None:
    entry = np.ones(96, np.float32)
    matrix = ImportanceMatrix("old.dat", {"a.weight": entry, "token_embd.weight": entry})
    assert matrix.weights_of("b.weight", (4, 96)) is None
    assert matrix.weights_of("token_embd.weight", (4, 32)) is None
    with pytest.raises(QuantizationError, match=r"old\.dat: the entry of a\.weight has 96 values, but .* needs 64"):
        matrix.weights_of("a.weight", (2, 4, 32))


def test_metadata_is_what_llama_quantize_writes() -> None:
    matrix = ImportanceMatrix("m.gguf", {"a": np.ones(1, np.float32)}, ("data/wiki.raw", "second.txt"), 125)
    assert matrix.metadata() == {
        "quantize.imatrix.file": string("m.gguf"),
        "quantize.imatrix.dataset": string("data/wiki.raw"),
        "quantize.imatrix.entries_count": uint32(1),
        "quantize.imatrix.chunks_count": uint32(125),
    }


def test_metadata_leaves_out_what_is_unknown_and_tells_no_folders() -> None:
    bare = ImportanceMatrix("m" * 200, {}).metadata()
    assert bare == {"quantize.imatrix.file": string("m" * 127), "quantize.imatrix.entries_count": uint32(0)}
    for path in ("/home/someone/texts/calib.txt", "C:\\texts\\calib.txt"):
        told = ImportanceMatrix("m.gguf", {}, (path,)).metadata()
        assert told["quantize.imatrix.dataset"] == string("calib.txt")


def test_metadata_is_cut_between_characters() -> None:
    told = ImportanceMatrix("m.gguf", {}, ("x" + "\u00e9" * 100,)).metadata()
    assert told["quantize.imatrix.dataset"] == string("x" + "\u00e9" * 63)


NAME = "blk.0.attn_q.weight"
ONE = {NAME: SUMS[NAME]}
ONE_COUNT = {NAME: COUNTS[NAME]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sums": {}, "counts": {}}, ".in_sum2 or .counts is missing for any tensor"),
        ({"sums": ONE, "counts": COUNTS}, ".in_sum2 or .counts is missing for blk.0.ffn_down_exps.weight"),
        ({"sums": ONE, "counts": {NAME: np.array([1, 2, 3], np.float32)}}, f"the counts of {NAME} do not fit its sums"),
        ({"sums": ONE, "counts": {NAME: np.array([np.nan], np.float32)}}, f"the counts of {NAME} do not fit its sums"),
        ({"sums": {NAME: SUMS[NAME].astype(np.float16)}, "counts": ONE_COUNT}, "is F16, not F32"),
        ({"sums": {NAME: np.full(4, np.inf, np.float32)}, "counts": ONE_COUNT}, f"the entry of {NAME} holds a value"),
        ({"sums": {NAME: np.full(4, -1, np.float32)}, "counts": ONE_COUNT}, f"the entry of {NAME} holds a value"),
        ({"datasets": ()}, "imatrix.datasets is not a list of names"),
        ({"chunks": None}, "imatrix.chunk_count is not a 32-bit number"),
    ],
)
def test_a_broken_gguf_form_is_an_error(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    path = write_gguf_form(tmp_path / "imatrix.gguf", **arguments)
    with pytest.raises(FormatError) as caught:
        read_imatrix(path)
    assert caught.value.what.startswith("imatrix.gguf: ")
    assert message in caught.value.what


VALUES = np.arange(4, dtype=np.float32)
GOOD = legacy_entry(NAME, 1, VALUES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "claims 4 more bytes, but 0 are left"),
        (b"\1\0", "claims 4 more bytes, but 2 are left"),
        (struct.pack("<i", 0), "the number of entries is 0"),
        (struct.pack("<i", -1), "the number of entries is -1"),
        (struct.pack("<i", 2**31 - 1) + GOOD, "claims 4 more bytes, but 0 are left"),
        (struct.pack("<ii", 1, 2**31 - 1) + b"name", "claims 2147483647 more bytes, but 4 are left"),
        (struct.pack("<ii", 1, -5), "the length of a name is -5"),
        (struct.pack("<i", 1) + GOOD[:-3], "claims 16 more bytes, but 13 are left"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**31 - 1), "claims 8589934588 more bytes"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, -1), "the number of values of a is -1"),
        (struct.pack("<ii", 1, 2) + b"\xff\xfe" + GOOD, "a name is not UTF-8"),
        (struct.pack("<i", 2) + GOOD + GOOD, f"{NAME} has two entries"),
        (struct.pack("<i", 1) + legacy_entry(NAME, 1, VALUES * np.nan), f"the entry of {NAME} holds a value"),
        (struct.pack("<i", 1) + GOOD + struct.pack("<ii", 3, 100) + b"short", "claims 100 more bytes, but 5 are left"),
    ],
)
def test_a_broken_legacy_form_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_imatrix(path)
    assert message in caught.value.what


@pytest.mark.parametrize("write", [write_gguf_form, write_legacy_form])
def test_no_damage_gets_past_the_closed_set_of_errors(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    whole = write(tmp_path / "whole").read_bytes()
    damaged = tmp_path / "damaged"
    refused = 0
    for position in (*range(400), *range(400, len(whole), 61)):
        for content in (whole[:position], whole[:position] + b"\xff" + whole[position + 1 :]):
            damaged.write_bytes(content)
            try:
                read_imatrix(damaged)
            except MconvError:
                refused += 1
    assert refused > 400
