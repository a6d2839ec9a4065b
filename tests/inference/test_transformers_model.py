"""A checkpoint's folder run layer by layer, against transformers' own way of loading and running it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from mconv.convert.cli.main import cli
from mconv.convert.errors import MappingError, MconvError, SourceError, UsageError
from mconv.convert.layouts import open_checkpoint
from mconv.inference import streamed_model, streamed_weights, transformers_model
from mconv.inference.language_model import LanguageModel
from mconv.inference.open_model import open_model
from mconv.inference.schedule import Schedule, first_scored
from mconv.inference.transformers_model import TransformersModel

from support import checkpoints
from support.command_line import Command

CHUNKS, LENGTH = 3, 80
SMALL = {**checkpoints.SHAPE, "hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "num_hidden_layers": 2}


def load(folder: Path) -> TransformersModel:
    return TransformersModel(open_checkpoint(folder), threads=1)


def scored(model: LanguageModel, chunks: np.ndarray) -> np.ndarray:
    """Logits of the scored positions, float32[chunks, positions, vocabulary]."""
    first = first_scored(chunks.shape[1])
    logits = np.full((len(chunks), chunks.shape[1] - 1 - first, model.vocab_size), np.nan, np.float32)
    for block in model.scored_logits(chunks, Schedule.of(chunks.shape, model.vocab_size)):
        place = slice(block.position - first, block.position - first + len(block.targets))
        logits[block.chunk, place] = block.logits
        np.testing.assert_array_equal(block.targets, chunks[block.chunk, first + 1 :][place])
    return logits


def draw(vocab: int, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(5).integers(0, vocab, (CHUNKS, length)).astype(np.int32)


def by_transformers(folder: Path, chunks: np.ndarray) -> np.ndarray:
    """The same logits from the whole model, as anybody would load it."""
    with_vision = json.loads((folder / "config.json").read_text())["architectures"][0].startswith("Mistral3")
    auto = transformers.AutoModelForImageTextToText if with_vision else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(chunks.astype(np.int64))).logits
    return logits[:, first_scored(chunks.shape[1]) : -1].numpy()


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral that looks back a few tokens only."""
    return checkpoints.mistral(tmp_path_factory.mktemp("windowed") / "model", **SMALL, sliding_window=16)


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with biases and Llama 3's rotary frequencies."""
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    folder = tmp_path_factory.mktemp("llama3") / "model"
    return checkpoints.llama(folder, **SMALL, rope_parameters=rope, attention_bias=True, mlp_bias=True)


@pytest.fixture(scope="module")
def yarn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Ministral 3 whose scaling of positions shows in a few tokens, its output matrix not its embedding."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16}
    rope |= {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
    config = transformers.Ministral3Config(**{**SMALL, "rope_parameters": rope, "tie_word_embeddings": False})
    return checkpoints.save(tmp_path_factory.mktemp("yarn") / "model", config)


@pytest.mark.parametrize("name", ["dense", "tied", "experts", "windowed", "llama3", "yarn", "mistral3", "ministral3"])
def test_logits_are_those_of_transformers(request: pytest.FixtureRequest, name: str) -> None:
    folder = request.getfixturevalue(name)
    with load(folder) as model:
        chunks = draw(model.vocab_size)
        found = scored(model, chunks)
    expected = by_transformers(folder, chunks)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["experts", "windowed", "llama3", "yarn"])
def test_reading_token_by_token_changes_nothing(request: pytest.FixtureRequest, name: str) -> None:
    with load(request.getfixturevalue(name)) as model:
        chunks = draw(model.vocab_size)
        expected = scored(model, chunks)[0]
        assert model.in_memory
        with model.reader(LENGTH) as read_on:
            found = [read_on(chunks[0, : LENGTH // 2 + 1]).copy()]
            found += [read_on(chunks[0, place : place + 1]).copy() for place in range(LENGTH // 2 + 1, LENGTH - 1)]
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_the_window_counts(windowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(windowed) as model:
        chunks = draw(model.vocab_size)
        found = scored(model, chunks)
    whole = json.loads((windowed / "config.json").read_text()) | {"sliding_window": None}
    monkeypatch.setattr(streamed_model, "_config", lambda _: whole)
    with load(windowed) as model:
        assert np.abs(scored(model, chunks) - found).max() > 1e-2


@pytest.mark.parametrize("name", ["dense", "experts", "tied"])
def test_what_has_no_room_is_read_again_and_changes_nothing(
    request: pytest.FixtureRequest, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(name)
    with load(folder) as model:
        chunks = draw(model.vocab_size)
        resident = scored(model, chunks)
    read: list[str] = []
    take = streamed_weights._read_into

    def watched(*rest: Any) -> None:
        read.append(rest[1].name)
        take(*rest)

    monkeypatch.setattr(streamed_weights, "_read_into", watched)
    monkeypatch.setattr(streamed_weights, "available_memory", lambda: 0)
    with load(folder) as model:
        np.testing.assert_array_equal(scored(model, chunks), resident)
        once = len(read)
        np.testing.assert_array_equal(scored(model, chunks), resident)
    assert sum("layers.0" in each for each in read[once:]) == sum("layers.0" in each for each in read[:once]) > 0


def test_pieces_of_any_size_give_the_same(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(dense) as model:
        chunks = draw(model.vocab_size)
        whole = scored(model, chunks)
    monkeypatch.setattr(transformers_model, "HIDDEN_BYTES", 1)
    monkeypatch.setattr(streamed_model, "PASS_TOKENS", LENGTH)
    monkeypatch.setattr(streamed_model, "MLP_TOKENS", 7)
    monkeypatch.setattr(streamed_model, "HEAD_BYTES", 4 * 256 * 1000)
    monkeypatch.setattr(streamed_weights, "READ_VALUES", 999)
    with load(dense) as model:
        np.testing.assert_allclose(scored(model, chunks), whole, atol=2e-5, rtol=0)


def test_only_what_fits_is_kept(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = 4 * (2 * 512 * 256 + 2 * 128 * 256 + 3 * 512 * 256 + 2 * 256)
    monkeypatch.setattr(streamed_weights, "available_memory", lambda: 2 * (3 * layer + 4 * 256))
    with load(dense) as model:
        scored(model, draw(model.vocab_size))
        kept = model._model._weights._kept
    assert [key for key in kept if "layers" in key] == [f"model.layers.{number}." for number in range(3)]


@pytest.mark.parametrize("name", ["dense", "experts"])
def test_a_megatron_folder_is_the_same_model(
    request: pytest.FixtureRequest, name: str, command: Command, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(name)
    assert command(cli, "hf-to-megatron", folder, tmp_path / "megatron").code == 0
    with load(folder) as model:
        chunks = draw(model.vocab_size)
        expected = scored(model, chunks)
    with open_model(tmp_path / "megatron", 1, hf_config=folder) as converted:
        np.testing.assert_array_equal(scored(converted, chunks), expected)
        assert (converted.vocabulary.adds_bos, converted.vocabulary.bos) == (True, 1)


def test_tokens_are_those_of_the_conversion(ministral3: Path, dense: Path, command: Command, tmp_path: Path) -> None:
    text = "def f(x): return x + 1  # caf\u00e9 <s>[INST]\n\n  \u4f60\u597d"
    for folder in (dense, ministral3):
        artifact = tmp_path / f"{folder.name}.gguf"
        assert command(cli, "hf-to-gguf", folder, artifact).code == 0
        with open_model(folder, 1) as theirs, open_model(artifact, 1) as ours:
            np.testing.assert_array_equal(theirs.vocabulary.tokenize(text), ours.vocabulary.tokenize(text))
            for member in ("vocab_size", "trained_context"):
                assert getattr(theirs, member) == getattr(ours, member)
            for member in ("adds_bos", "bos", "eos"):
                assert getattr(theirs.vocabulary, member) == getattr(ours.vocabulary, member)
            assert theirs.used_tokens() == ours.used_tokens()


MEASURE = """
import sys
from pathlib import Path
import numpy as np
from mconv.inference import streamed_weights
from mconv.inference.language_model import LanguageModel
from mconv.inference.open_model import open_model
from mconv.inference.schedule import Schedule

def kilobytes(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

streamed_weights.available_memory = lambda: int(sys.argv[2])
with open_model(Path(sys.argv[1]), 1) as model:
    chunks = np.ones((2, 64), np.int32)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = kilobytes("VmRSS")
    for _ in model.scored_logits(chunks, Schedule.of(chunks.shape, model.vocab_size)):
        pass
    print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a part of a run")
def test_memory_is_that_of_a_layer(tmp_path: Path) -> None:
    """Eight layers of 24 MB in float32: read one at a time they take little more than one of them."""
    shape = {**checkpoints.SHAPE, "hidden_size": 512, "intermediate_size": 3584, "num_hidden_layers": 8}
    shape["vocab_size"] = checkpoints.LARGE
    folder = checkpoints.mistral(tmp_path / "model", **shape)
    layer = 4 * (2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 3584)

    def peak(memory: int) -> int:
        command = [sys.executable, "-c", MEASURE, str(folder), str(memory)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    whole, streamed = peak(8 << 30), peak(0)
    assert whole > 8 * layer
    # A layer, a part of the output matrix, the logits of a step, and what torch allocates along the way.
    logits = 4 * 128 * 32000
    assert streamed < layer + streamed_model.HEAD_BYTES + 2 * logits + (48 << 20)


def edit_config(folder: Path, copy: Path, **members: object) -> Path:
    """The checkpoint with another config.json."""
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "config.json").unlink()
    config = json.loads((folder / "config.json").read_text()) | members
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("members", "error", "words"),
    [
        ({"num_hidden_layers": 7}, MappingError, "model.layers.7.*has no place"),
        ({"num_hidden_layers": 9}, MappingError, "model.layers.8.* is missing"),
        (
            {"intermediate_size": 500},
            MappingError,
            "mlp.gate_proj.weight has shape .512, 256., but transformers expects .500, 256.",
        ),
        ({"model_type": "unheard-of"}, SourceError, "transformers cannot build"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "x"}}, MconvError, "factor"),
    ],
)
def test_a_configuration_of_another_model(
    dense: Path, tmp_path: Path, members: dict[str, object], error: type[MconvError], words: str
) -> None:
    folder = edit_config(dense, tmp_path / "edited", **members)
    with pytest.raises(error, match=words), load(folder) as model:
        scored(model, draw(model.vocab_size))


def test_an_untied_model_without_output_matrix(tied: Path, tmp_path: Path) -> None:
    folder = edit_config(tied, tmp_path / "edited", tie_word_embeddings=False)
    with pytest.raises(MappingError, match=r"lm_head.weight is missing"), load(folder) as model:
        scored(model, draw(model.vocab_size))


def test_without_torch_the_hint_says_what_to_install(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "mconv.inference.streamed_model", raising=False)
    with pytest.raises(UsageError, match="needs torch and transformers") as caught:
        open_model(dense)
    assert caught.value.hint == "pip install 'mconv[original]'"
