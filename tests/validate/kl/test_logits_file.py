"""The file of log-probabilities that llama-perplexity and `mval kl` exchange."""

from __future__ import annotations

import errno
import math
import os
import shutil
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mconv.convert.errors import DiskError, FormatError, MconvError, SourceError
from mconv.inference.chunks import cut, read_text
from mconv.inference.llama_cpp_model import LlamaCppModel
from mconv.inference.open_model import open_model
from mconv.inference.schedule import LogitBlock, Schedule, scored_per_chunk
from mconv.validate.cli import cli
from mconv.validate.divergence.lockstep import measure_divergence
from mconv.validate.divergence.logits_file import LogitsFile, LogitsWriter, is_logits_file

from support.by_definition import EXAMPLE, LENGTH, all_logits, log_softmax, measure
from support.command_line import Command


def read_by_hand(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and log-probabilities float64[scored tokens, vocabulary], by the layout as llama-perplexity writes it."""
    data = path.read_bytes()
    assert data[:8] == b"_logits_"
    length, vocab, count = struct.unpack_from("<iii", data, 8)
    tokens = np.frombuffer(data, np.int32, length * count, 20).reshape(count, length)
    row = np.dtype([("step", "<f4"), ("least", "<f4"), ("steps", "<u2", (vocab + vocab % 2,))])
    rows = np.frombuffer(data, row, offset=20 + tokens.nbytes)
    assert len(rows) == count * (length - 1 - length // 2)
    values = rows["least"][:, None].astype(np.float64) + rows["step"][:, None].astype(np.float64) * rows["steps"]
    return tokens, values[:, :vocab]


def test_the_file_holds_what_the_model_said(base: Path, text: Path, kept: Path) -> None:
    logits, _ = all_logits(base, text)
    log_p = log_softmax(logits)
    tokens, found = read_by_hand(kept)
    with LlamaCppModel(base, threads=1) as runtime:
        np.testing.assert_array_equal(tokens, cut(runtime.vocabulary.tokenize(read_text(text)), LENGTH))
    # Half of the largest step, for tokens within 16 nats of the likeliest.
    held = log_p > log_p.max(axis=1, keepdims=True) - 16
    assert np.abs(found - log_p)[held].max() < 0.51 * 16 / 65535
    assert not kept.with_name("kept.kld.partial").exists()


def test_a_file_in_place_of_the_model(base: Path, rounded: Path, text: Path, kept: Path) -> None:
    with open_model(rounded, 1) as artifact, open_model(base, 1) as same:
        found, itself = measure_divergence(LogitsFile(kept), [artifact, same], [])
    (lock_step,) = measure(base, rounded, texts=[text])
    assert found.text is None
    assert found.reference == kept
    assert found.statistics.kl.mean == pytest.approx(lock_step.statistics.kl.mean, rel=1e-3)
    assert found.statistics.perplexity == lock_step.statistics.perplexity
    assert found.statistics.reference_perplexity.value == pytest.approx(
        lock_step.statistics.reference_perplexity.value, rel=1e-5
    )
    # What is stored is summed as it is: the same model is as far off as the rounding of the file.
    tokens, stored = read_by_hand(kept)
    log_q = log_softmax(all_logits(base, text)[0])
    expected = np.where(stored > -16, np.exp(stored) * (stored - log_q), 0).sum(axis=1)
    assert expected.min() < 0
    assert itself.statistics.kl.mean == pytest.approx(expected.mean(), abs=1e-7)
    assert itself.statistics.kl.min == pytest.approx(expected.min(), abs=1e-6)
    assert len(tokens) == itself.chunks


def test_the_first_chunks_of_a_file(rounded: Path, kept: Path, command: Command) -> None:
    result = command(cli, "kl", rounded, "--reference", kept, "--chunks", 3, "--json")
    assert result.code == 0
    (row,) = result.json["results"]
    assert (row["text"], row["chunks"], row["tokens"]) == (None, 3, 3 * scored_per_chunk(LENGTH))


def test_an_odd_vocabulary_and_logits_that_are_all_alike(tmp_path: Path) -> None:
    path = tmp_path / "file.kld"
    logits = np.zeros((3, 5), np.float32)
    logits[1] = [0, -40, 3, -12, -12.9]
    logits[2, 0] = np.nan
    tokens = np.arange(8, dtype=np.int32)[None] % 5
    with ThreadPoolExecutor(1) as pool, LogitsWriter(path, tokens, 5) as writer:
        writer.write(LogitBlock(0, 4, logits, tokens[0, 5:]), pool)
    found = read_by_hand(path)[1]
    np.testing.assert_allclose(found[0], -math.log(5), rtol=1e-6)
    low = log_softmax(logits[1:2].astype(np.float64))[0]
    low[1] = low[2] - 16
    np.testing.assert_allclose(found[1], low, atol=2e-4)
    assert np.isnan(found[2]).all()
    (block,) = LogitsFile(path).scored_logits(tokens, Schedule.of(tokens.shape, 5))
    np.testing.assert_allclose(block.logits, found, atol=1e-6)


def test_a_file_that_is_not_finished_is_none(tmp_path: Path) -> None:
    path = tmp_path / "file.kld"
    with pytest.raises(KeyboardInterrupt), LogitsWriter(path, np.zeros((1, 8), np.int32), 5):
        assert path.with_name("file.kld.partial").exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_replaced(base: Path, rounded: Path, text: Path, tmp_path: Path, command: Command) -> None:
    there = tmp_path / "there.kld"
    there.write_bytes(b"mine")
    options = ("--text", text, "--ctx", LENGTH, "--save-logits")
    result = command(cli, "kl", rounded, "--reference", base, *options, there)
    assert (result.code, there.read_bytes()) == (4, b"mine")
    assert "exists already" in result.err
    result = command(cli, "kl", rounded, "--reference", base, *options, tmp_path / "no" / "where.kld")
    assert (result.code, result.out) == (4, "")


def test_no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"not enough space for .*file.kld: 12.23 GB needed"):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
        LogitsWriter(tmp_path / "file.kld", np.zeros((183, 512), np.int32), 131072)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda data: data[:10], SourceError, "ends inside its header"),
        (lambda data: data[:-1], SourceError, "bytes, but 12 chunks take"),
        (lambda data: data + b"1", SourceError, "bytes, but 12 chunks take"),
        (lambda data: data[:8] + struct.pack("<i", -1) + data[12:], FormatError, "chunks of -1 tokens"),
        (lambda data: data[:8] + struct.pack("<iii", 1 << 30, 5, 1 << 30) + data[20:], FormatError, "chunks of"),
        (lambda data: data[:12] + struct.pack("<i", (1 << 31) - 1) + data[16:], SourceError, "chunks take"),
        (lambda data: data[:20] + struct.pack("<i", 263) + data[24:], FormatError, "outside its vocabulary"),
        (lambda data: b"_Logits_" + data[8:], FormatError, "is not a file of log-probabilities"),
    ],
)
def test_a_damaged_file(
    kept: Path, tmp_path: Path, change: Callable[[bytes], bytes], error: type[MconvError], words: str
) -> None:
    path = tmp_path / "damaged.kld"
    path.write_bytes(change(kept.read_bytes()))
    with pytest.raises(error, match=words):
        LogitsFile(path)


def test_the_kind_of_a_reference_is_read_from_it(base: Path, kept: Path) -> None:
    assert [is_logits_file(path) for path in (base, kept, EXAMPLE)] == [False, True, False]


def test_a_file_that_another_run_writes(tmp_path: Path) -> None:
    path = tmp_path / "kept.kld"
    numbers = np.full((2, 8), 5, np.int32)
    with LogitsWriter(path, numbers, 300):
        with pytest.raises(DiskError, match=r"kept\.kld is being written by another run"):
            LogitsWriter(path, numbers, 300)
        assert not path.exists()
    assert path.exists()
    path.unlink()
    (tmp_path / "other").write_text("precious")
    (tmp_path / "kept.kld.partial").symlink_to(tmp_path / "other")
    with pytest.raises(OSError):
        LogitsWriter(path, numbers, 300)
    assert (tmp_path / "other").read_text() == "precious"


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "kept.kld"
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught, LogitsWriter(path, np.full((2, 8), 5, np.int32), 300):
        pass
    assert caught.value.filename == str(path)
    assert not list(tmp_path.iterdir())
