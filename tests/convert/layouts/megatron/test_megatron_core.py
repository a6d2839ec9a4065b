"""Megatron-Core and back: megatron-core itself loads what ours writes, and ours reads what megatron-core saves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from mconv.convert.cli.main import cli
from mconv.convert.layouts.hf.reader import open_hf
from mconv.convert.layouts.megatron.reader import open_megatron
from mconv.convert.tensors.nodes import Tensor, row_count
from mconv.quantize.cli import cli as mquant

from support import checkpoints
from support.gguf_compare import assert_same_tensors, differing_keys
from support.megatron_core import run_ranks

SMALL = {**checkpoints.SHAPE, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 4}
TOKENS = [1, 17, 299, 31999, 5, 640, 12, 8888]

APART = {"singleton_local_shards": True, "non_homogeneous_layers": True}
"""Each layer, each expert, gate and up under keys of their own."""

Convert = Callable[..., Path]


@pytest.fixture
def convert(command, tmp_path: Path) -> Convert:  # type: ignore[no-untyped-def]
    """Run one of mconv's commands, and return what it wrote."""

    def run(name: str, source: Path, out: str, *options: object) -> Path:
        (tmp_path / out).parent.mkdir(exist_ok=True)
        result = command(cli, name, source, tmp_path / out, *options)
        assert result.code == 0, result.err
        return tmp_path / out

    return run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three float32 models, whose logits can be compared closely."""
    folder = tmp_path_factory.mktemp("float32")
    dense = transformers.MistralConfig(**SMALL, sliding_window=None, rope_theta=1e6)
    tied = transformers.LlamaConfig(**{**SMALL, "num_hidden_layers": 2}, tie_word_embeddings=True)
    mixture = transformers.MixtralConfig(**{**SMALL, "num_hidden_layers": 2}, num_local_experts=8)
    configs = {"dense": dense, "tied": tied, "mixture": mixture}
    return {
        name: checkpoints.save(folder / name, config, dtype=torch.float32, max_shard_size="20MB")
        for name, config in configs.items()
    }


def config_of(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "config.json").read_text())


def everything(tensor: Tensor) -> bytes:
    return tensor.read(0, row_count(tensor.shape)).tobytes()


def assert_equal_tensors(ours: Path, original: Path, hf_config: Path | None = None) -> None:
    """Require the tensors of a Hugging Face folder, byte for byte, of a Megatron checkpoint."""
    assert_same_bytes(open_megatron(ours, hf_config).tensors, open_hf(original).tensors)


def assert_same_bytes(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in mine.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in theirs.items()
    }
    assert [name for name in mine if everything(mine[name]) != everything(theirs[name])] == []


@pytest.mark.parametrize("name", ["dense", "experts", "tied", "ministral3"])
def test_a_detour_through_megatron_changes_no_byte(name: str, convert: Convert, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(name)
    megatron = convert("hf-to-megatron", checkpoint, "megatron")
    assert_equal_tensors(megatron, checkpoint)
    detour, direct = convert("megatron-to-gguf", megatron, "a.gguf"), convert("hf-to-gguf", checkpoint, "b.gguf")
    assert differing_keys(detour, direct) == {}
    if name != "dense":  # in shards, whose order a checkpoint in one file does not have
        assert_same_tensors(detour, direct)


@pytest.mark.parametrize("name", ["dense", "experts"])
def test_a_folder_comes_back_byte_for_byte(name: str, convert: Convert, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(name)
    back = convert("megatron-to-hf", convert("hf-to-megatron", checkpoint, "megatron"), "back")
    ours, original = open_hf(back), open_hf(checkpoint)
    assert_same_bytes(ours.tensors, original.tensors)
    assert ours.spec == original.spec
    assert config_of(back)["architectures"] == config_of(checkpoint)["architectures"]
    mine, theirs = ours.vocabulary(), original.vocabulary()
    assert (mine.tokens, mine.scores, mine.types) == (theirs.tokens, theirs.scores, theirs.types)


@pytest.mark.parametrize("name", ["megatron-to-hf", "hf-to-megatron"])
def test_a_folder_that_holds_the_source_is_refused(  # type: ignore[no-untyped-def]
    name: str, dense: Path, convert: Convert, command, tmp_path: Path
) -> None:
    megatron = convert("hf-to-megatron", dense, "megatron")
    source = shutil.copytree(dense, megatron / "hf") if name == "hf-to-megatron" else megatron
    before = sorted(tmp_path.rglob("*"))
    result = command(cli, name, source, megatron, "--overwrite")
    assert (result.code, "holds what is read" in result.err) == (2, True)
    assert sorted(tmp_path.rglob("*")) == before


def test_it_quantizes_in_one_read(dense: Path, convert: Convert, command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    megatron = convert("hf-to-megatron", dense, "megatron")
    for source, out in ((megatron, "a.gguf"), (convert("megatron-to-gguf", megatron, "m.gguf"), "b.gguf")):
        result = command(mquant, source, "--type", "Q4_K_M", "--output", tmp_path / out)
        assert result.code == 0, result.err
    assert_same_tensors(tmp_path / "a.gguf", tmp_path / "b.gguf")


@pytest.mark.parametrize(
    "layouts",
    [
        {"dense": {}, "mixture": {"padded_vocab": 32128, "sharding": APART}},
        {"dense": {"tensor": 2}, "tied": {"pipeline": 2}, "mixture": {"expert": 2}},
        {"dense": {"pipeline": 2}, "tied": {"tensor": 2}, "mixture": {"tensor": 2, "expert": 2}},
        {"dense": {"tensor": 2, "pipeline": 2}},
    ],
    ids=["TP1; padded and apart", "TP2; tied PP2; EP2", "PP2; tied TP2; TP2 and EP2", "TP2 x PP2"],
)
def test_megatron_core_computes_what_transformers_does(
    layouts: dict[str, dict], models: dict[str, Path], convert: Convert, tmp_path: Path
) -> None:
    """And what it saves again, cut as its ranks had it, comes back byte for byte: as torch_dist and as `torch`."""
    for name in layouts:
        convert("hf-to-megatron", models[name], f"{name}/megatron")
        (tmp_path / name / "again").mkdir()
    run_ranks(
        *(
            {
                **layout,
                "config": config_of(models[name]),
                "load": str(tmp_path / name / "megatron" / "release"),
                "tokens": TOKENS,
                "logits": str(tmp_path / name / "logits.npy"),
                "save": str(tmp_path / name / "again"),
                "save_ranks": str(tmp_path / name / "ranks"),
            }
            for name, layout in layouts.items()
        )
    )
    for name in layouts:
        model = models[name]
        reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        with torch.no_grad():
            expected = reference(torch.tensor([TOKENS])).logits[0].numpy()
        found = np.load(tmp_path / name / "logits.npy")[:, : expected.shape[1]]
        assert np.abs(found - expected).max() < 1e-4
        assert_equal_tensors(tmp_path / name / "again", model, hf_config=model)
        assert_equal_tensors(tmp_path / name / "ranks", model, hf_config=model)


def test_experts_in_one_matrix_come_back(models: dict[str, Path], convert: Convert, tmp_path: Path) -> None:
    """GroupedMLP's are transposed in its ranks' files, and are not in torch_dist."""
    model = models["mixture"]
    load = str(convert("hf-to-megatron", model, "megatron") / "release")
    layouts: list[dict] = [{"expert": 2}, {"tensor": 2, "expert_tensor": 2}]
    jobs = []
    for number, layout in enumerate(layouts):
        (tmp_path / f"again-{number}").mkdir()
        places = {"save": str(tmp_path / f"again-{number}"), "save_ranks": str(tmp_path / f"ranks-{number}")}
        jobs.append({**layout, "grouped": True, "config": config_of(model), "load": load, **places})
    run_ranks(*jobs)
    saved = torch.load(tmp_path / "ranks-1" / "mp_rank_00" / "model_optim_rng.pt", weights_only=False)["model"]
    assert "decoder.layers.0.mlp.experts.weight1" in saved
    for number in range(len(layouts)):
        assert_equal_tensors(tmp_path / f"again-{number}", model, hf_config=model)
        assert_equal_tensors(tmp_path / f"ranks-{number}", model, hf_config=model)
