"""`mval kl` against the definitions in float64, against transformers, and against llama-perplexity --kl-divergence."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import checkpoints
import gguf
import numpy as np
import pytest
import tiny_gguf
import transformers
from command_line import Result

from convert.cli import cli as mconv
from convert.errors import DiskError, FormatError, MconvError, SourceError, UsageError
from quantize.cli import cli as mquant
from validate.cli import cli
from validate.divergence.comparison import compare
from validate.divergence.lockstep import measure_divergence
from validate.divergence.result import Divergence
from validate.models import chunks
from validate.models.chunks import LogitBlock, Schedule, cut, read_text, scored_per_chunk, with_bos
from validate.models.logits_file import LogitsFile, LogitsWriter, is_logits_file
from validate.models.model import open_model
from validate.models.runtime import Runtime

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
EXAMPLE, EVALUATION = EXAMPLES / "tiny-mistral", EXAMPLES / "tiny-mistral-eval.txt"
LENGTH = 128


def write_text(path: Path, seed: int = 3, size: int = 1600) -> Path:
    """Letters, each of which is a token of `tiny_gguf`."""
    letters = np.random.default_rng(seed).integers(97, 123, size)
    path.write_bytes(bytes(letters.tolist()))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kl")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return tiny_gguf.write_noise(folder / "base.gguf")


@pytest.fixture(scope="module")
def rounded(folder: Path) -> Path:
    return tiny_gguf.write_noise(folder / "rounded.gguf", quantization=gguf.GGMLQuantizationType.Q4_0)


@pytest.fixture(scope="module")
def text(folder: Path) -> Path:
    return write_text(folder / "text.txt")


@pytest.fixture(scope="module")
def example(folder: Path) -> Path:
    """The bundled example as a BF16 file."""
    mconv.main(["hf-to-gguf", str(EXAMPLE), str(folder / "example.gguf")], standalone_mode=False)
    return folder / "example.gguf"


def measure(reference: Path, *artifacts: Path, texts: list[Path], limit: int | None = None) -> list[Divergence]:
    with open_model(reference, 1) as base:
        opened = [open_model(artifact, 1) for artifact in artifacts]
        try:
            return measure_divergence(base, opened, texts, length=LENGTH, limit=limit)
        finally:
            for artifact in opened:
                artifact.__exit__(None, None, None)


def all_logits(path: Path, text: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits of every scored position, chunk by chunk, float64[tokens, vocabulary]; and the tokens that follow."""
    with Runtime(path, threads=1) as runtime:
        read = with_bos(runtime, cut(runtime.tokenize(read_text(text)), LENGTH))
        logits = np.full((*read.shape, runtime.vocab_size), np.nan)
        for block in runtime.scored_logits(read, Schedule.of(read.shape, runtime.vocab_size, 2)):
            logits[block.chunk, block.position : block.position + len(block.targets)] = block.logits
    half = LENGTH // 2
    return logits[:, half:-1].reshape(-1, logits.shape[-1]), read[:, half + 1 :].reshape(-1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def spread(values: np.ndarray, prefix: str) -> dict[str, float]:
    """Mean, error and quantiles, each by its definition."""
    ordered = np.sort(values)

    def quantile(fraction: float) -> float:
        place = fraction * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    percentiles = {"p99_9": 99.9, "p99": 99, "p95": 95, "p90": 90, "p75": 75, "p25": 25, "p10": 10, "p5": 5, "p1": 1}
    found = {name: quantile(percent / 100) for name, percent in {**percentiles, "p0_1": 0.1, "median": 50}.items()}
    found |= {"min": ordered[0], "max": ordered[-1], "mean": values.mean()}
    found |= {"standard_error": values.std() / math.sqrt(len(values) - 1)}
    return {f"{prefix}.{name}": value for name, value in found.items()}


def by_definition(base: np.ndarray, other: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Every number of the result, from all logits at once, in float64."""
    log_p, log_q = log_softmax(base), log_softmax(other)
    counted = log_p > -16
    kl = np.where(counted, np.exp(log_p) * (log_p - log_q), 0).sum(axis=1)
    every, count = np.arange(len(targets)), len(targets)
    p, q = -log_p[every, targets], -log_q[every, targets]
    delta = np.exp(-q) - np.exp(-p)
    covariance = np.cov(q, p, ddof=0) / (count - 1)
    ratio_error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    mine, theirs = math.exp(q.mean()), math.exp(p.mean())
    slopes = np.array([mine, -theirs])
    same = (base.argmax(axis=1) == other.argmax(axis=1)).mean()
    rms = math.sqrt((delta**2).mean())
    return {
        **spread(kl, "kl"),
        **spread(delta, "delta_p"),
        "same_top": same,
        "same_top_standard_error": math.sqrt(same * (1 - same) / (count - 1)),
        "perplexity": mine,
        "perplexity_standard_error": mine * math.sqrt(covariance[0, 0]),
        "reference_perplexity": theirs,
        "reference_perplexity_standard_error": theirs * math.sqrt(covariance[1, 1]),
        "ln_ratio": q.mean() - p.mean(),
        "ln_ratio_standard_error": ratio_error,
        "ratio": mine / theirs,
        "ratio_standard_error": mine / theirs * ratio_error,
        "difference": mine - theirs,
        "difference_standard_error": math.sqrt(slopes @ covariance @ slopes),
        "correlation": np.corrcoef(q, p)[0, 1],
        "delta_p_rms": rms,
        "delta_p_rms_standard_error": 0.5 / rms * (delta**2).std() / math.sqrt(count - 1),
        "tokens": count,
    }


def numbers(result: Divergence) -> dict[str, float]:
    """The numbers of a result that do not depend on the clock, a level deep."""
    members = result.to_json()
    flat = {f"{outer}.{name}": value for outer in ("kl", "delta_p") for name, value in members.pop(outer).items()}
    left_out = ("file", "reference", "text", "findings", "seconds", "reference_seconds", "chunks")
    return flat | {name: value for name, value in members.items() if name not in left_out}


def test_every_statistic(base: Path, rounded: Path, text: Path) -> None:
    (result,) = measure(base, rounded, texts=[text])
    logits, targets = all_logits(base, text)
    expected = by_definition(logits, all_logits(rounded, text)[0], targets)
    found = numbers(result)
    assert found.keys() == expected.keys()
    assert expected["kl.mean"] > 0.05
    for name, value in expected.items():
        # float32 exp on a vocabulary of some hundred tokens; the difference of the perplexities cancels digits.
        assert found[name] == pytest.approx(value, rel=2e-5, abs=1e-7), name


def test_peaked_logits_of_a_large_vocabulary() -> None:
    """Most of the vocabulary is below exp(-16) and does not count; what does is exact to float32's last digits."""
    random = np.random.default_rng(1)
    base = random.normal(0, 7, (37, 50_001)).astype(np.float32) + 30
    other = base + random.normal(0, 0.2, base.shape).astype(np.float32)
    targets = base.argmax(axis=1).astype(np.int32)
    targets[::3] = random.integers(0, base.shape[1], len(targets[::3]))
    with ThreadPoolExecutor(2) as pool:
        first, second, third = compare(LogitBlock(0, 0, base, targets), [other, base, other - 100], pool)
    log_p, log_q = log_softmax(base.astype(np.float64)), log_softmax(other.astype(np.float64))
    assert 0.5 < (log_p <= -16).mean() < 0.99
    expected = np.where(log_p > -16, np.exp(log_p) * (log_p - log_q), 0).sum(axis=1)
    np.testing.assert_allclose(first.kl, expected, atol=3e-6)
    np.testing.assert_allclose(first.losses, -log_q[np.arange(37), targets], atol=2e-6)
    np.testing.assert_allclose(first.reference_losses, -log_p[np.arange(37), targets], atol=2e-6)
    np.testing.assert_array_equal(first.same_top, base.argmax(axis=1) == other.argmax(axis=1))
    # Logits that are equal give zero, and what they are shifted by does not matter.
    np.testing.assert_array_equal(second.kl, 0)
    np.testing.assert_allclose(third.kl, first.kl, atol=1e-4)


def test_a_model_is_no_distance_from_itself(base: Path, text: Path) -> None:
    (result,) = measure(base, base, texts=[text])
    found = numbers(result)
    assert {found["kl.max"], found["kl.min"], found["delta_p_rms"], found["ln_ratio"]} == {0.0}
    assert found["same_top"] == 1
    assert found["correlation"] == pytest.approx(1)
    assert not result.findings


def test_artifacts_and_texts_do_not_disturb_each_other(base: Path, rounded: Path, text: Path, tmp_path: Path) -> None:
    texts = [text, write_text(tmp_path / "other.txt", seed=4)]
    together = measure(base, rounded, base, texts=texts)
    assert [(each.file, each.text) for each in together] == [(a, t) for a in (rounded, base) for t in texts]
    for result in together:
        assert result.text is not None
        (alone,) = measure(base, result.file, texts=[result.text])
        assert numbers(alone) == numbers(result)
    assert numbers(together[0]) != numbers(together[1])


@pytest.mark.parametrize("models", [1, 2, 3, 4, 6, 12, 50])
@pytest.mark.parametrize("vocab", [2048, 32768, 131072, 262144])
@pytest.mark.parametrize("length", [8, 128, 512, 700, 4096])
def test_schedules_cover_every_position_once_in_bounded_memory(vocab: int, length: int, models: int) -> None:
    schedule = Schedule.of((21, length), vocab, models)
    seen = np.zeros((21, length), int)
    scored = np.zeros((21, length), int)
    for step in schedule.steps():
        assert step.group.stop - step.group.start <= schedule.parallel
        assert (step.group.stop - step.group.start) * (step.stop - step.start) <= schedule.rows
        seen[step.group, step.start : step.stop] += 1
        scored[step.group, step.first : step.stop] += 1
    assert (seen == 1).all()
    assert (scored.sum(axis=1) == length - length // 2).all()
    assert schedule.rows * vocab * 4 * models <= max(chunks.ALL_LOGITS_BYTES, models * vocab * 4)
    assert schedule.rows * vocab * 4 <= chunks.LOGITS_BYTES


def test_bf16_is_its_source(example: Path) -> None:
    """The target of every conversion: a mean KL divergence under 1e-4, the same likeliest token over 99 %."""
    with open_model(EXAMPLE, 1) as original, open_model(example, 1) as artifact:
        (result,) = measure_divergence(original, [artifact], [EVALUATION], length=256, limit=16)
    assert not result.findings
    found = result.statistics
    assert 0 < found.kl.mean < 1e-5
    assert found.same_top > 0.99
    assert abs(found.ln_ratio[0]) < 1e-4
    assert found.perplexity.value == pytest.approx(1.8, abs=0.3)


def test_a_megatron_folder_against_both(example: Path, command: Callable[..., Result], tmp_path: Path) -> None:
    megatron = tmp_path / "megatron"
    assert command(mconv, "hf-to-megatron", EXAMPLE, megatron).code == 0
    options = ("--text", EVALUATION, "--ctx", 64, "--chunks", 4, "--json")
    result = command(cli, "kl", megatron, example, "--reference", EXAMPLE, "--hf-config", EXAMPLE, *options)
    assert result.code == 0, result.err
    same, close = result.json["results"]
    assert (same["file"], same["reference"]) == (str(megatron), str(EXAMPLE))
    assert (same["kl"]["max"], same["same_top"]) == (0, 1)
    assert 0 < close["kl"]["mean"] < 1e-4
    options = ("--text", EVALUATION, "--ctx", 64, "--chunks", 4, "--json")
    measured = command(cli, "perplexity", megatron, EXAMPLE, example, "--hf-config", EXAMPLE, *options)
    of_folder, of_original, of_file = (row["perplexity"] for row in measured.json["results"])
    assert of_folder == of_original == same["perplexity"] == same["reference_perplexity"]
    assert of_file == close["perplexity"] == pytest.approx(of_original, rel=1e-3)


# Vocabularies


def pad_vocabulary(folder: Path, copy: Path, rows: int) -> Path:
    """The checkpoint with an embedding and an output matrix of more rows than it has tokens."""
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(copy)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(folder / name, copy / name)
    return copy


def test_padding_is_no_difference(command: Callable[..., Result], tmp_path: Path) -> None:
    small = checkpoints.mistral(tmp_path / "small", num_hidden_layers=1)
    padded = pad_vocabulary(small, tmp_path / "padded", 32064)
    text = tmp_path / "text.txt"
    text.write_text(EVALUATION.read_text(encoding="utf-8")[:3000])
    assert command(mconv, "hf-to-gguf", padded, tmp_path / "padded.gguf").code == 0
    for reference, artifact in ((small, padded), (padded, small), (small, tmp_path / "padded.gguf")):
        (result,) = measure(reference, artifact, texts=[text], limit=2)
        assert result.statistics.kl.max < 1e-3
        assert (result.statistics.kl.max == 0) == artifact.is_dir()
        assert not result.findings


def test_vocabularies_of_other_sizes_are_refused(base: Path, example: Path, text: Path) -> None:
    with pytest.raises(UsageError, match=r"example.gguf has a vocabulary of 2048 tokens, .*base.gguf one of 263"):
        measure(base, example, texts=[text])


def test_other_tokens_are_told(base: Path, text: Path, tmp_path: Path, command: Callable[..., Result]) -> None:
    without_bos = tiny_gguf.write_script(tmp_path / "script.gguf", {}, adds_bos=False)
    (result,) = measure(base, without_bos, texts=[text])
    (finding,) = result.findings
    assert (finding.kind, finding.severity, finding.subject) == ("other_tokens", "warn", str(text))
    assert finding.what == f"{text}: the vocabulary of {without_bos} makes other tokens of it from token 0 on"
    told = command(cli, "kl", without_bos, "--reference", base, "--text", text, "--ctx", LENGTH)
    assert told.code == 0
    assert told.out.splitlines()[-1].split()[:3] == ["warn", "kl", "other_tokens"]


# What is not finite


def break_output(path: Path, copy: Path, value: float) -> Path:
    copy.write_bytes(path.read_bytes())
    output = next(tensor for tensor in gguf.GGUFReader(copy, "r+").tensors if tensor.name == "output.weight")
    output.data[7, 5] = value
    return copy


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("broken", ["artifact", "reference"])
def test_logits_that_are_not_finite(
    base: Path, rounded: Path, text: Path, tmp_path: Path, command: Callable[..., Result], value: float, broken: str
) -> None:
    bad = break_output(base, tmp_path / "bad.gguf", value)
    reference, artifact = (base, bad) if broken == "artifact" else (bad, base)
    result = command(cli, "kl", artifact, rounded, "--reference", reference, "--text", text, "--ctx", LENGTH, "--json")
    assert result.code == 1
    first, second = result.json["results"]
    assert first["kl"]["mean"] is None
    (finding,) = first["findings"]
    position = LENGTH // 2
    told = f"{text}: the logits of {bad} are not finite, first in chunk 0 at position {position}"
    assert finding == {
        "check": "kl", "kind": "not_finite_logits", "subject": str(text), "what": told, "severity": "fail"
    }  # fmt: skip
    assert (second["kl"]["mean"] is None) == (broken == "reference")
    assert result.err.splitlines()[0].startswith(
        f"error: {artifact}: not_finite_logits: {text}: the logits of {bad}"[:200]
    )


# The command


def test_json(base: Path, rounded: Path, text: Path, command: Callable[..., Result]) -> None:
    result = command(cli, "kl", rounded, "--reference", base, "--text", text, "--ctx", LENGTH, "--chunks", 2, "--json")
    assert (result.code, result.err) == (0, "")
    assert list(result.json) == ["schema_version", "results"]
    (row,) = result.json["results"]
    wanted = "file reference text kl same_top perplexity reference_perplexity ln_ratio delta_p_rms tokens seconds"
    assert list(row)[:11] == wanted.split()
    assert list(row["kl"])[:11] == [
        "mean",
        "standard_error",
        "median",
        "max",
        "p99_9",
        "p99",
        "p95",
        "p90",
        "p10",
        "p5",
        "p1",
    ]
    assert list(row)[-1] == "findings"
    assert (row["file"], row["reference"], row["text"]) == (str(rounded), str(base), str(text))
    assert (row["tokens"], row["chunks"]) == (2 * scored_per_chunk(LENGTH), 2)
    assert row["seconds"] > 0 < row["reference_seconds"]
    (expected,) = measure(base, rounded, texts=[text], limit=2)
    assert row["kl"] == expected.statistics.kl.to_json()


def test_table(base: Path, rounded: Path, text: Path, command: Callable[..., Result]) -> None:
    result = command(cli, "kl", rounded, "--reference", base, "--text", text, "--ctx", LENGTH)
    assert result.code == 0
    header, row = result.out.splitlines()
    assert re.split("  +", header) == [
        "file", "text", "perplexity", "ln(ratio)", "mean KL", "99.9 %", "max", "RMS delta p", "same top"
    ]  # fmt: skip
    assert len(re.split("  +", row)) == 9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--reference", "base.gguf"), "no --text"),
        (
            ("--reference", "base.gguf", "--text", "a", "--text", "b", "--save-logits", "c"),
            "with 2 texts",
        ),
        (("--reference", "kept.kld", "--text", "a"), "--text with a file of log-probabilities"),
        (("--reference", "kept.kld", "--ctx", "128"), "--ctx with a file of log-probabilities"),
        (("--reference", "kept.kld", "--save-logits", "d"), "--save-logits with a file of log-probabilities"),
        (("--reference", "base.gguf", "--text", "a", "--hf-config", "b"), "none of these is a Megatron checkpoint"),
    ],
)
@pytest.mark.usefixtures("kept")
def test_options_that_contradict_each_other(
    folder: Path, rounded: Path, command: Callable[..., Result], options: tuple[str, ...], words: str
) -> None:
    options = tuple(str(folder / each) if each.endswith((".gguf", ".kld")) else each for each in options)
    result = command(cli, "kl", rounded, *options)
    assert (result.code, result.out) == (2, "")
    assert words in result.err.splitlines()[0]


def test_a_bad_artifact_is_told_before_any_is_run(
    base: Path, text: Path, tmp_path: Path, command: Callable[..., Result]
) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF")
    result = command(cli, "kl", base, bad, "--reference", base, "--text", text, "--ctx", tiny_gguf.CONTEXT + 8)
    assert (result.code, result.out) == (3, "")
    assert "bad.gguf" in result.err
    assert "trained on" not in result.err


# The file of logits


@pytest.fixture(scope="module")
def kept(folder: Path, base: Path, rounded: Path, text: Path) -> Path:
    with open_model(base, 1) as reference, open_model(rounded, 1) as artifact:
        measure_divergence(reference, [artifact], [text], length=LENGTH, save_logits=folder / "kept.kld")
    return folder / "kept.kld"


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
    with Runtime(base, threads=1) as runtime:
        np.testing.assert_array_equal(tokens, cut(runtime.tokenize(read_text(text)), LENGTH))
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


def test_the_first_chunks_of_a_file(rounded: Path, kept: Path, command: Callable[..., Result]) -> None:
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


def test_a_file_is_not_replaced(
    base: Path, rounded: Path, text: Path, tmp_path: Path, command: Callable[..., Result]
) -> None:
    there = tmp_path / "there.kld"
    there.write_bytes(b"mine")
    options = ("--text", text, "--ctx", LENGTH, "--save-logits")
    result = command(cli, "kl", rounded, "--reference", base, *options, there)
    assert (result.code, there.read_bytes()) == (4, b"mine")
    assert "exists already" in result.err
    result = command(cli, "kl", rounded, "--reference", base, *options, tmp_path / "no" / "where.kld")
    assert (result.code, result.out) == (4, "")


def test_no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"no room for .*file.kld: 12.23 GB needed"):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
        LogitsWriter(tmp_path / "file.kld", np.zeros((183, 512), np.int32), 131072)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda data: data[:10], SourceError, "ends inside its header"),
        (lambda data: data[:-1], SourceError, "bytes, where 12 chunks take"),
        (lambda data: data + b"1", SourceError, "bytes, where 12 chunks take"),
        (lambda data: data[:8] + struct.pack("<i", -1) + data[12:], FormatError, "chunks of -1 tokens"),
        (lambda data: data[:8] + struct.pack("<iii", 1 << 30, 5, 1 << 30) + data[20:], FormatError, "chunks of"),
        (lambda data: data[:12] + struct.pack("<i", (1 << 31) - 1) + data[16:], SourceError, "chunks take"),
        (lambda data: data[:20] + struct.pack("<i", 263) + data[24:], FormatError, "outside its vocabulary"),
        (lambda data: b"_Logits_" + data[8:], FormatError, "no file of log-probabilities"),
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


# Memory


def test_a_large_vocabulary_at_a_long_context(tmp_path: Path, command: Callable[..., Result]) -> None:
    """131,072 logits for each of 2,047 tokens would be a gigabyte for each of three models."""
    shape = {**checkpoints.SHAPE, "hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "num_hidden_layers": 1}
    config = transformers.MistralConfig(**{**shape, "vocab_size": 131072, "sliding_window": None})
    folder = checkpoints.save(tmp_path / "model", config, tokenizer="tekken")
    artifact = tmp_path / "artifact.gguf"
    assert command(mconv, "hf-to-gguf", folder, artifact).code == 0
    words = np.random.default_rng(2).choice(EVALUATION.read_text(encoding="utf-8").split(), 9000)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(words))
    options = ["--reference", artifact, "--text", text, "--ctx", "4096", "--chunks", "1", "--threads", "1"]
    program = [sys.executable, "-c", "from validate.cli import main; main()", "kl", artifact, folder, *options]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    # Half a gigabyte is torch, transformers, and the vocabularies.
    assert usage.ru_maxrss * 1024 < 3 << 29


# Beside llama-perplexity


@pytest.fixture(scope="module")
def llama_perplexity() -> str:
    found = os.environ.get("MCONV_LLAMA_PERPLEXITY")
    if not found:
        pytest.skip("MCONV_LLAMA_PERPLEXITY does not name the llama-perplexity of the installed llama.cpp")
    return found


@pytest.fixture(scope="module")
def quantized(folder: Path) -> Path:
    """The bundled example as Q4_K_M."""
    path = folder / "quantized.gguf"
    mquant.main([str(EXAMPLE), "--type", "Q4_K_M", "--output", str(path)], standalone_mode=False)
    return path


CHUNKS = 24


@pytest.fixture(scope="module")
def saved(folder: Path, llama_perplexity: str, example: Path) -> Path:
    """What llama-perplexity keeps of the BF16 file."""
    path = folder / "saved.kld"
    options = ["-f", EVALUATION, "-c", "512", "--chunks", str(CHUNKS), "-t", "1", "--save-all-logits", path]
    subprocess.run([llama_perplexity, "-m", example, *options], check=True, capture_output=True)
    return path


ROWS = {
    "Mean PPL(Q)": "perplexity",
    "Mean PPL(base)": "reference_perplexity",
    "Mean ln(PPL(Q)/PPL(base))": "ln_ratio",
    "Mean PPL(Q)/PPL(base)": "ratio",
    "Mean PPL(Q)-PPL(base)": "difference",
    "Mean KLD": "kl.mean",
    "Maximum KLD": "kl.max",
    "Median KLD": "kl.median",
    "Minimum KLD": "kl.min",
    "Mean \u0394p": "delta_p.mean",
    "Maximum \u0394p": "delta_p.max",
    "Median \u0394p": "delta_p.median",
    "Minimum \u0394p": "delta_p.min",
    "RMS \u0394p": "delta_p_rms",
    "Same top p": "same_top",
}
PERCENTILES = {"99.9": "p99_9", "99.0": "p99", "95.0": "p95", "90.0": "p90", "75.0": "p75", "25.0": "p25"}
PERCENTILES |= {"10.0": "p10", "5.0": "p5", "1.0": "p1", "0.1": "p0_1"}
ROWS |= {f"{percent}% KLD": f"kl.{name}" for percent, name in PERCENTILES.items()}
ROWS |= {f"{percent}% \u0394p": f"delta_p.{name}" for percent, name in PERCENTILES.items()}


def printed(binary: str, model: Path, logits: Path) -> dict[str, tuple[float, float]]:
    """The table of llama-perplexity --kl-divergence: number and half of its last digit, in the units of ours."""
    arguments = [binary, "-m", model, "--kl-divergence", "--kl-divergence-base", logits, "-c", "512", "-t", "1"]
    for _ in range(30):  # it can exit before its log is written
        done = subprocess.run(arguments, capture_output=True, check=True)
        table = (done.stdout + done.stderr).decode().partition("====== Perplexity statistics ======")[2]
        if "Same top p" in table:
            break
    found = {}
    for line in table.splitlines():
        told = re.fullmatch(r"(\S.*?) *: *(-?\d+\.(\d+))(?: \u00b1 *(\d+\.(\d+)))?( ?%)?", line.strip())
        if told is None or (name := ROWS.get(re.sub(" +", " ", told[1]))) is None:
            continue
        unit = 0.01 if told[6] else 1
        found[name] = (unit * float(told[2]), unit * 0.5 * 10 ** -len(told[3]))
        if told[4]:
            error = f"{name}_standard_error" if "." not in name else f"{name.split('.')[0]}.standard_error"
            found[error] = (unit * float(told[4]), unit * 0.5 * 10 ** -len(told[5]))
    return found


def test_llama_perplexity_on_its_own_file(llama_perplexity: str, saved: Path, quantized: Path) -> None:
    """Every number, to one in the last digit that is printed: the logits and the file are the same."""
    expected = printed(llama_perplexity, quantized, saved)
    with open_model(quantized, 1) as artifact:
        (result,) = measure_divergence(LogitsFile(saved), [artifact], [])
    found = numbers(result)
    # All but the correlation, of which three digits are printed under a name of its own, and the number of tokens.
    assert found.keys() - expected.keys() == {"correlation", "tokens", "kl.p75", "kl.p25"}
    for name, (value, half) in expected.items():
        # Quantiles are interpolated in float32 there.
        assert found[name] == pytest.approx(value, abs=half + 5e-7 + 5e-5 * abs(value)), name


def test_llama_perplexity_in_lock_step(llama_perplexity: str, saved: Path, quantized: Path, example: Path) -> None:
    """The reference's logits as they are, not as the file rounds them: the same to four digits and more."""
    expected = printed(llama_perplexity, quantized, saved)
    with open_model(example, 1) as reference, open_model(quantized, 1) as artifact:
        (result,) = measure_divergence(reference, [artifact], [EVALUATION], limit=CHUNKS)
    found = numbers(result)
    for name in ("kl.mean", "perplexity", "reference_perplexity", "ratio", "delta_p_rms", "same_top"):
        value, half = expected[name]
        assert found[name] == pytest.approx(value, rel=1e-4, abs=half), name
    for name, (value, half) in expected.items():
        # What the file rounds by, up to 1e-4 of a token's log-probability, moves the quantiles a little.
        assert found[name] == pytest.approx(value, abs=half + 6e-5 + 5e-4 * abs(value)), name


def test_llama_perplexity_reads_ours(
    llama_perplexity: str, saved: Path, quantized: Path, example: Path, tmp_path: Path
) -> None:
    ours = tmp_path / "ours.kld"
    with open_model(example, 1) as reference, open_model(quantized, 1) as artifact:
        measure_divergence(reference, [artifact], [EVALUATION], limit=CHUNKS, save_logits=ours)
    assert printed(llama_perplexity, quantized, ours) == printed(llama_perplexity, quantized, saved)
    mine, theirs = ours.read_bytes(), saved.read_bytes()
    assert len(mine) == len(theirs)
    # The lowest log-probability of a row may differ in its last bit: it is a logarithm of another library's sum.
    assert (np.frombuffer(mine, np.uint8) != np.frombuffer(theirs, np.uint8)).mean() < 1e-5
