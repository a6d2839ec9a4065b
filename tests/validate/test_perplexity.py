"""`mval perplexity` against a plain calculation, against transformers, and against llama-perplexity."""

from __future__ import annotations

import math
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest

from mconv.convert.errors import SourceError
from mconv.inference import chunks, schedule
from mconv.inference.llama_cpp_model import LlamaCppModel
from mconv.inference.schedule import Schedule, scored_per_chunk
from mconv.validate.cli import cli
from mconv.validate.divergence.perplexity import Perplexity, negative_log_likelihoods, perplexity

from support import tiny_gguf
from support.command_line import Command
from support.golden import Golden
from support.privileges import bound_by_modes

TEXT = "".join(chr(97 + value) for value in np.random.default_rng(3).integers(0, 26, 1600))


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write_noise(tmp_path_factory.mktemp("noise") / "noise.gguf")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT + "\n")
    return path


def read(runtime: LlamaCppModel, length: int, limit: int | None = None) -> np.ndarray:
    return chunks.with_bos(runtime.vocabulary, chunks.cut(runtime.vocabulary.tokenize(TEXT), length, limit))


def measure(path: Path, length: int, limit: int | None = None) -> Perplexity:
    with LlamaCppModel(path, threads=1) as runtime:
        return perplexity(runtime, read(runtime, length, limit), lambda *_: None)


def losses_by_definition(path: Path, length: int, count: int) -> np.ndarray:
    """llama-perplexity's definition spelled out: one chunk, one position, one logarithm at a time, in float64."""
    losses = []
    tokens = [tiny_gguf.BOS, *(tiny_gguf.byte(character) for character in TEXT)]
    with LlamaCppModel(path, threads=1) as runtime, runtime.context(length, rows=256) as context:
        for number in range(count):
            part = np.array(tokens[number * length : (number + 1) * length], np.int32)
            part[0] = tiny_gguf.BOS
            context.clear()
            logits = np.empty((length, tiny_gguf.VOCAB))
            for start in range(0, length, 256):
                stop = min(start + 256, length)
                logits[start:stop] = context.decode(part[None, start:stop], start, rows=stop - start)[0]
            for position in range(length // 2, length - 1):
                row = logits[position]
                top = row.max()
                losses.append(top + math.log(np.exp(row - top).sum()) - row[part[position + 1]])
    return np.array(losses)


@pytest.mark.parametrize(("length", "count"), [(8, 20), (50, 5), (129, 5), (512, 2), (768, 2)])
def test_the_definition(noise: Path, length: int, count: int) -> None:
    found = measure(noise, length, count)
    losses = losses_by_definition(noise, length, count)
    assert found.tokens == len(losses) == count * scored_per_chunk(length)
    # Steps of fewer than 64 tokens a chunk go through an attention of llama.cpp that sums in f16, not in f32.
    tolerance = 1e-6 if length in (512, 768) else 2e-3
    assert found.value == pytest.approx(math.exp(losses.mean()), rel=tolerance)
    error = losses.std(ddof=0) / math.sqrt(len(losses) - 1) * math.exp(losses.mean())
    assert found.standard_error == pytest.approx(error, rel=tolerance)


@pytest.mark.parametrize("rows", [16, 130, 512])
def test_less_memory_changes_nothing(noise: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    whole = measure(noise, 128)
    monkeypatch.setattr(schedule, "LOGITS_BYTES", rows * 4 * tiny_gguf.VOCAB)
    with LlamaCppModel(noise, threads=1) as runtime:
        cut = read(runtime, 128)
        sizes = [
            block.logits.shape[0] for block in runtime.scored_logits(cut, Schedule.of(cut.shape, runtime.vocab_size))
        ]
    assert max(sizes) <= rows
    assert sum(sizes) == whole.tokens
    # The attention of llama.cpp sums in f16 where it takes few tokens at a time.
    assert measure(noise, 128).value == pytest.approx(whole.value, rel=2e-3)


def test_blocks_come_with_their_targets(noise: Path) -> None:
    with LlamaCppModel(noise, threads=1) as runtime:
        cut = read(runtime, 16)
        blocks = runtime.scored_logits(cut, Schedule.of(cut.shape, runtime.vocab_size))
        targets = [block.targets for block in blocks]
    assert sorted(np.concatenate(targets)) == sorted(cut[:, 9:].reshape(-1))


def test_transformers_agrees(noise: Path) -> None:
    """The same file through another implementation, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tiny_gguf.VOCAB,
        hidden_size=tiny_gguf.HIDDEN,
        intermediate_size=tiny_gguf.FFN,
        num_hidden_layers=2,
        num_attention_heads=tiny_gguf.HEADS,
        num_key_value_heads=tiny_gguf.KV_HEADS,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(hugging_face_weights(noise))
    length = 512
    with LlamaCppModel(noise, threads=1) as runtime:
        cut = read(runtime, length, 2)
        found = perplexity(runtime, cut, lambda *_: None)
    with torch.no_grad():
        logits = model(torch.from_numpy(cut.astype(np.int64))).logits.double()
    scored = torch.log_softmax(logits[:, length // 2 : -1], -1)
    targets = torch.from_numpy(cut[:, length // 2 + 1 :].astype(np.int64))
    loss = -scored.gather(-1, targets[..., None]).mean().item()
    # llama.cpp keeps keys and values in f16, 2**-12 off a value: errors of either sign, in a mean over 510 tokens.
    assert found.value == pytest.approx(math.exp(loss), rel=5e-5)


def hugging_face_weights(path: Path) -> dict:
    """The tensors of a GGUF file under transformers' names, Q and K rows back in the order of halves."""
    import torch

    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    heads = {"attn_q": tiny_gguf.HEADS, "attn_k": tiny_gguf.KV_HEADS}
    weights = {}
    for tensor in gguf.GGUFReader(path).tensors:
        stem = tensor.name.removesuffix(".weight")
        values = torch.from_numpy(np.array(tensor.data))
        if stem in whole:
            weights[f"{whole[stem]}.weight"] = values
            continue
        _, layer, kind = stem.split(".")
        if kind in heads:
            rows = values.shape[0]
            values = values.reshape(heads[kind], rows // heads[kind] // 2, 2, -1).swapaxes(1, 2).reshape(rows, -1)
        weights[f"model.layers.{layer}.{names[kind]}.weight"] = values
    return weights


def test_losses_are_those_of_float64() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(0, 8, (37, 70_001)).astype(np.float32)
    logits[3] += 1e4
    logits[5, 1:] = -np.inf
    targets = random.integers(0, logits.shape[1], 37).astype(np.int32)
    targets[5] = 0
    with ThreadPoolExecutor(2) as pool:
        found = negative_log_likelihoods(logits, targets, pool)
    exact = logits.astype(np.float64)
    top = exact.max(axis=1)
    expected = np.log(np.exp(exact - top[:, None]).sum(axis=1)) + top - exact[np.arange(37), targets]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_logits_that_are_not_numbers_show() -> None:
    with ThreadPoolExecutor(1) as pool:
        losses = negative_log_likelihoods(np.full((2, 8), np.nan, np.float32), np.zeros(2, np.int32), pool)
    assert math.isnan(Perplexity().add(losses).value)


def test_overflow_is_infinite() -> None:
    assert Perplexity().add(np.full(2, 1e4)).value == math.inf


def test_the_final_newline_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a\r\nb\n\n")
    assert chunks.read_text(path) == "a\r\nb\n"


def test_a_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc\xff")
    with pytest.raises(SourceError, match="byte 3 is not UTF-8"):
        chunks.read_text(path)


def test_a_text_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe is not a regular file"):
        chunks.read_text(tmp_path / "pipe")


def test_a_text_that_is_too_short() -> None:
    assert chunks.cut(np.zeros(64, np.int32), 32).shape == (2, 32)
    with pytest.raises(SourceError, match="63 tokens, but a context of 32 needs 64"):
        chunks.cut(np.zeros(63, np.int32), 32)


def test_json(command: Command, noise: Path, text: Path) -> None:
    result = command(cli, "perplexity", noise, noise, "--text", text, "--ctx", 64, "--chunks", 3, "--json")
    assert result.code == 0
    assert list(result.json) == ["schema_version", "results"]
    first, second = result.json["results"]
    members = ["file", "text", "perplexity", "standard_error", "tokens", "chunks", "seconds", "findings"]
    assert list(first) == members
    assert (first["file"], first["text"], first["chunks"], first["tokens"]) == (str(noise), str(text), 3, 3 * 31)
    assert first["perplexity"] == second["perplexity"] == pytest.approx(measure(noise, 64, 3).value)


def test_several_texts(command: Command, noise: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT[::-1])
    result = command(cli, "perplexity", noise, noise, "--text", text, "--text", other, "--ctx", 64, "--json")
    rows = [(row["file"], row["text"]) for row in result.json["results"]]
    assert rows == [(str(noise), str(path)) for _ in range(2) for path in (text, other)]
    values = [row["perplexity"] for row in result.json["results"]]
    assert values[:2] == values[2:]
    assert values[0] == measure(noise, 64).value != values[1]


def test_a_short_text_is_named_before_any_is_run(
    command: Command, noise: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("abc")
    monkeypatch.setattr(LlamaCppModel, "scored_logits", lambda *_: pytest.fail("it was run"))
    result = command(cli, "perplexity", noise, "--text", text, "--text", short, "--ctx", 64)
    assert (result.code, result.out) == (3, "")
    assert f"{short} is too short: 4 tokens, but a context of 64 needs 128" in result.err


def test_table(command: Command, noise: Path, text: Path) -> None:
    result = command(cli, "perplexity", noise, "--text", text, "--ctx", 64)
    assert result.code == 0
    assert result.out.splitlines()[0].split() == ["file", "text", "perplexity", "tokens", "chunks", "seconds"]
    assert re.search(r"\d\.\d{4} \+/- \d+\.\d{4}", result.out)


def test_a_context_beyond_the_training_is_noted(command: Command, noise: Path, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text(TEXT * 2)
    length = tiny_gguf.CONTEXT + 8
    result = command(cli, "perplexity", noise, "--text", text, "--ctx", length, "--chunks", 1, "--json")
    assert result.code == 0
    assert f"a context of {length} tokens, but the model was trained on {tiny_gguf.CONTEXT}" in result.err


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [(b"not gguf", 3, "is not a GGUF file"), (b"GGUF", 3, "past the end of the file"), (None, 4, "No such file")],
)
def test_bad_files(command: Command, tmp_path: Path, text: Path, content: bytes | None, code: int, words: str) -> None:
    path = tmp_path / "bad.gguf"
    if content is not None:
        path.write_bytes(content)
    result = command(cli, "perplexity", path, "--text", text)
    assert result.code == code
    assert result.out == ""
    error, hint = result.err.splitlines()
    assert error.startswith("error: ")
    assert words in error
    assert hint.startswith("hint: ")


def test_a_bad_file_is_told_before_any_is_run(command: Command, noise: Path, tmp_path: Path, text: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF")
    # The first file takes a context beyond its training, which is noted as soon as it is run.
    result = command(cli, "perplexity", noise, bad, "--text", text, "--ctx", tiny_gguf.CONTEXT + 8)
    assert (result.code, result.out) == (3, "")
    assert "bad.gguf" in result.err
    assert "trained on" not in result.err


@pytest.mark.parametrize("which", ["model", "text"])
def test_a_file_without_permission(command: Command, noise: Path, tmp_path: Path, text: Path, which: str) -> None:
    closed = tmp_path / "closed"
    closed.write_bytes(noise.read_bytes() if which == "model" else b"words")
    closed.chmod(0)
    model, words = (closed, text) if which == "model" else (noise, closed)
    with bound_by_modes():
        result = command(cli, "perplexity", model, "--text", words)
    assert (result.code, result.out) == (4, "")
    assert "Permission denied" in result.err


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_model_that_is_not_finite_fails_after_its_results(
    command: Command, noise: Path, tmp_path: Path, text: Path, weight: float
) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(noise.read_bytes())
    output = next(tensor for tensor in gguf.GGUFReader(path, "r+").tensors if tensor.name == "output.weight")
    output.data[:] = weight
    result = command(cli, "perplexity", path, noise, "--text", text, "--ctx", 64, "--chunks", 1, "--json")
    assert result.code == 1
    broken, good = result.json["results"]
    assert broken["perplexity"] is None
    assert broken["standard_error"] is None
    assert good["perplexity"] > 1
    what = f"the perplexity is not finite on {text}"
    assert [(finding["kind"], finding["what"]) for finding in broken["findings"]] == [("not_finite_perplexity", what)]
    assert not good["findings"]
    assert result.err.splitlines()[0] == f"error: {path}: not_finite_perplexity: {what}"


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
@pytest.mark.parametrize(("length", "batch"), [(512, 2048), (128, 2048), (700, 700)])
def test_llama_perplexity_agrees(
    tmp_path: Path, text: Path, kind: str, length: int, batch: int, golden: Golden, request: pytest.FixtureRequest
) -> None:
    path = tiny_gguf.write_noise(tmp_path / "m.gguf", quantization=gguf.GGMLQuantizationType[kind])

    def theirs() -> dict[str, float]:
        begin = request.getfixturevalue("llama_perplexity")
        value, error = final_estimate([*begin, "-m", path, "-f", text, "-c", length, "-b", batch, "-t", 1])
        return {"perplexity": value, "error": error}

    expected = golden(theirs, path, text, tolerance=1e-4)
    found = measure(path, length)
    # Four decimals and five are printed.
    assert found.value == pytest.approx(expected["perplexity"], abs=1e-4)
    assert found.standard_error == pytest.approx(expected["error"], abs=1e-5)


def final_estimate(arguments: list[object]) -> tuple[float, float]:
    """What llama-perplexity prints in the end, if it does: it can exit before its log is written."""
    for _ in range(30):
        done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=True)
        told = re.search(r"PPL = ([\d.]+) \+/- ([\d.]+)", done.stdout + done.stderr)
        if told:
            return float(told[1]), float(told[2])
    pytest.fail("llama-perplexity printed no estimate in 30 runs")
