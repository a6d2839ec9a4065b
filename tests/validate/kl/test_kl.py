"""`mval kl` against the definitions in float64, and against transformers."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import transformers

from mconv.convert.cli.main import cli as mconv
from mconv.convert.errors import UsageError
from mconv.inference.open_model import open_model
from mconv.inference.schedule import ALL_LOGITS_BYTES, LOGITS_BYTES, LogitBlock, Schedule, scored_per_chunk
from mconv.validate.cli import cli
from mconv.validate.divergence.comparison import compare
from mconv.validate.divergence.lockstep import measure_divergence

from support import checkpoints, tiny_gguf
from support.by_definition import (
    EVALUATION,
    EXAMPLE,
    LENGTH,
    all_logits,
    by_definition,
    log_softmax,
    measure,
    numbers,
    write_text,
)
from support.command_line import Command


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
    assert schedule.rows * vocab * 4 * models <= max(ALL_LOGITS_BYTES, models * vocab * 4)
    assert schedule.rows * vocab * 4 <= LOGITS_BYTES


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


def test_a_megatron_folder_against_both(example: Path, command: Command, tmp_path: Path) -> None:
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


def test_padding_is_no_difference(command: Command, tmp_path: Path) -> None:
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
    with pytest.raises(
        UsageError, match=r"example.gguf has a vocabulary of 2048 tokens, but .*base.gguf has one of 263"
    ):
        measure(base, example, texts=[text])


def test_other_tokens_are_told(base: Path, text: Path, tmp_path: Path, command: Command) -> None:
    without_bos = tiny_gguf.write_script(tmp_path / "script.gguf", {}, adds_bos=False)
    (result,) = measure(base, without_bos, texts=[text])
    (finding,) = result.findings
    assert (finding.kind, finding.severity, finding.subject) == ("other_tokens", "warn", str(text))
    assert finding.what == f"{text}: the vocabulary of {without_bos} gives different tokens from token 0 on"
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
    base: Path, rounded: Path, text: Path, tmp_path: Path, command: Command, value: float, broken: str
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


def test_json(base: Path, rounded: Path, text: Path, command: Command) -> None:
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


def test_table(base: Path, rounded: Path, text: Path, command: Command) -> None:
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
        (("--reference", "base.gguf"), "--text is missing"),
        (
            ("--reference", "base.gguf", "--text", "a", "--text", "b", "--save-logits", "c"),
            "--save-logits can save one text, not 2",
        ),
        (("--reference", "kept.kld", "--text", "a"), "--text does not apply to a file of log-probabilities"),
        (("--reference", "kept.kld", "--ctx", "128"), "--ctx does not apply to a file of log-probabilities"),
        (
            ("--reference", "kept.kld", "--save-logits", "d"),
            "--save-logits does not apply to a file of log-probabilities",
        ),
        (("--reference", "kept.kld", "--text", "a"), "--text does not apply to a file of log-probabilities"),
        (("--reference", "kept.kld", "--ctx", "128"), "--ctx does not apply to a file of log-probabilities"),
        (
            ("--reference", "kept.kld", "--save-logits", "d"),
            "--save-logits does not apply to a file of log-probabilities",
        ),
        (
            ("--reference", "base.gguf", "--text", "a", "--hf-config", "b"),
            "none of these is a Megatron-Core checkpoint",
        ),
    ],
)
@pytest.mark.usefixtures("kept")
def test_options_that_contradict_each_other(
    folder: Path, rounded: Path, command: Command, options: tuple[str, ...], words: str
) -> None:
    options = tuple(str(folder / each) if each.endswith((".gguf", ".kld")) else each for each in options)
    result = command(cli, "kl", rounded, *options)
    assert (result.code, result.out) == (2, "")
    assert words in result.err.splitlines()[0]


def test_a_bad_artifact_is_told_before_any_is_run(base: Path, text: Path, tmp_path: Path, command: Command) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF")
    result = command(cli, "kl", base, bad, "--reference", base, "--text", text, "--ctx", tiny_gguf.CONTEXT + 8)
    assert (result.code, result.out) == (3, "")
    assert "bad.gguf" in result.err
    assert "trained on" not in result.err


def test_a_large_vocabulary_at_a_long_context(tmp_path: Path, command: Command) -> None:
    """131,072 logits for each of 2,047 tokens would be a gigabyte for each of three models."""
    shape = {**checkpoints.SHAPE, "hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "num_hidden_layers": 1}
    folder = checkpoints.mistral(tmp_path / "model", **{**shape, "vocab_size": 131072})
    artifact = tmp_path / "artifact.gguf"
    assert command(mconv, "hf-to-gguf", folder, artifact).code == 0
    words = np.random.default_rng(2).choice(EVALUATION.read_text(encoding="utf-8").split(), 9000)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(words))
    options = ["--reference", artifact, "--text", text, "--ctx", "4096", "--chunks", "1", "--threads", "1"]
    arguments = map(str, ("kl", artifact, folder, *options))
    program = [sys.executable, "-c", "from mconv.validate.cli import main; main()", *arguments]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    # Half a gigabyte is torch, transformers, and the vocabularies.
    assert usage.ru_maxrss * 1024 < 3 << 29
