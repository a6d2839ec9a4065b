"""Megatron-Core and back: megatron-core itself loads what ours writes, and ours reads what megatron-core saves."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from support.command_line import Command, Direction
from support.gguf_compare import assert_same_tensors, differing_keys
from support.golden import FOLDER, Golden, digest_of_files
from support.megatron_core import run_ranks

SMALL = {**checkpoints.SHAPE, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 4}
TOKENS = [1, 17, 299, 2047, 5, 640, 12, 888]

APART = {"singleton_local_shards": True, "non_homogeneous_layers": True}
"""Each layer, each expert, gate and up under keys of their own."""

LAYOUTS: dict[str, dict[str, dict[str, Any]]] = {
    "TP1; padded and apart": {"dense": {}, "mixture": {"padded": True, "sharding": APART}},
    "TP2; tied PP2; EP2": {"dense": {"tensor": 2}, "tied": {"pipeline": 2}, "mixture": {"expert": 2}},
    "PP2; tied TP2; TP2 and EP2": {
        "dense": {"pipeline": 2},
        "tied": {"tensor": 2},
        "mixture": {"tensor": 2, "expert": 2},
    },
    "TP2 x PP2": {"dense": {"tensor": 2, "pipeline": 2}},
}
"""Jobs that take as many ranks, by the model that they are done with."""

GROUPED: list[dict[str, Any]] = [{"expert": 2, "grouped": True}, {"tensor": 2, "expert_tensor": 2, "grouped": True}]

RECORDED = FOLDER / "megatron_core.tar.xz"
"""What megatron-core saved of models of some thousand weights, cut as in `LAYOUTS` and `GROUPED`."""


@pytest.fixture
def convert(command: Command, tmp_path: Path) -> Direction:
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
    few = {**SMALL, "num_hidden_layers": 2}
    return {
        "dense": checkpoints.mistral(folder / "dense", dtype="float32", max_shard_size=2_000_000, **SMALL),
        "tied": checkpoints.llama(folder / "tied", dtype="float32", tie_word_embeddings=True, **few),
        "mixture": checkpoints.mixtral(folder / "mixture", dtype="float32", max_shard_size=2_000_000, **few),
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same in bfloat16, so small that what megatron-core saves of them can be kept."""
    folder = tmp_path_factory.mktemp("tiny")
    shape = {**SMALL, "hidden_size": 8, "intermediate_size": 48, "head_dim": 8}
    few = {**shape, "num_hidden_layers": 2}
    return {
        "dense": checkpoints.mistral(folder / "dense", **shape),
        "tied": checkpoints.llama(folder / "tied", tie_word_embeddings=True, **few),
        "mixture": checkpoints.mixtral(folder / "mixture", **{**few, "intermediate_size": 16, "num_local_experts": 4}),
    }


def config_of(checkpoint: Path) -> Any:
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
def test_a_detour_through_megatron_changes_no_byte(
    name: str, convert: Direction, request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(name)
    megatron = convert("hf-to-megatron", checkpoint, "megatron")
    assert_equal_tensors(megatron, checkpoint)
    detour, direct = convert("megatron-to-gguf", megatron, "a.gguf"), convert("hf-to-gguf", checkpoint, "b.gguf")
    assert differing_keys(detour, direct) == {}
    if name != "dense":  # in shards, whose order a checkpoint in one file does not have
        assert_same_tensors(detour, direct)


@pytest.mark.parametrize("name", ["dense", "experts"])
def test_a_folder_comes_back_byte_for_byte(name: str, convert: Direction, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(name)
    back = convert("megatron-to-hf", convert("hf-to-megatron", checkpoint, "megatron"), "back")
    ours, original = open_hf(back), open_hf(checkpoint)
    assert_same_bytes(ours.tensors, original.tensors)
    assert ours.spec == original.spec
    assert config_of(back)["architectures"] == config_of(checkpoint)["architectures"]
    mine, theirs = ours.vocabulary(), original.vocabulary()
    assert (mine.tokens, mine.scores, mine.types) == (theirs.tokens, theirs.scores, theirs.types)


@pytest.mark.parametrize("name", ["megatron-to-hf", "hf-to-megatron"])
def test_a_folder_that_holds_the_source_is_refused(
    name: str, dense: Path, convert: Direction, command: Command, tmp_path: Path
) -> None:
    megatron = convert("hf-to-megatron", dense, "megatron")
    source = shutil.copytree(dense, megatron / "hf") if name == "hf-to-megatron" else megatron
    before = sorted(tmp_path.rglob("*"))
    result = command(cli, name, source, megatron, "--overwrite")
    assert (result.code, "contains input files" in result.err) == (2, True)
    assert sorted(tmp_path.rglob("*")) == before


def test_it_quantizes_in_one_read(dense: Path, convert: Direction, command: Command, tmp_path: Path) -> None:
    megatron = convert("hf-to-megatron", dense, "megatron")
    for source, out in ((megatron, "a.gguf"), (convert("megatron-to-gguf", megatron, "m.gguf"), "b.gguf")):
        result = command(mquant, source, "--type", "Q4_K_M", "--output", tmp_path / out)
        assert result.code == 0, result.err
    assert_same_tensors(tmp_path / "a.gguf", tmp_path / "b.gguf")


def assert_logits(found: Path, model: Path) -> None:
    """Require of megatron-core what transformers computes."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.tensor([TOKENS])).logits[0].numpy()
    assert np.abs(np.load(found)[:, : expected.shape[1]] - expected).max() < 1e-4


def job_of(layout: dict[str, Any], model: Path, megatron: Path, out: Path) -> dict[str, Any]:
    """Load ours, and save it in both formats; its logits where transformers can be asked."""
    config = config_of(model)
    padded = {"padded_vocab": config["vocab_size"] + 128} if layout.get("padded") else {}
    (out / "again").mkdir(parents=True)
    places = {"load": str(megatron / "release"), "save": str(out / "again"), "save_ranks": str(out / "ranks")}
    return {**layout, **padded, "config": config, **places}


@pytest.mark.parametrize("name", ["dense", "tied", "mixture"])
def test_megatron_core_was_given_these_bytes(
    name: str, models: dict[str, Path], convert: Direction, golden: Golden, tmp_path: Path
) -> None:
    """What ours writes is what megatron-core computed the logits of transformers with."""
    written = convert("hf-to-megatron", models[name], "megatron")

    def proven() -> str:
        job = {"load": str(written / "release"), "tokens": TOKENS, "logits": str(tmp_path / "logits.npy")}
        run_ranks({"config": config_of(models[name]), **job})
        assert_logits(tmp_path / "logits.npy", models[name])
        return digest_of_files(written / "release")

    assert digest_of_files(written / "release") == golden(proven, models[name])


@pytest.mark.oracle
def test_what_is_recorded_is_what_megatron_core_saves(
    tiny: dict[str, Path], convert: Direction, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    megatron = {name: convert("hf-to-megatron", model, f"{name}/megatron") for name, model in tiny.items()}
    out = tmp_path / "saved"
    for number, layouts in enumerate([*LAYOUTS.values(), *({"mixture": layout} for layout in GROUPED)]):
        run_ranks(
            *(job_of(layout, tiny[name], megatron[name], out / str(number) / name) for name, layout in layouts.items())
        )
    if pytestconfig.getoption("--record-golden"):
        with tarfile.open(RECORDED, "w:xz") as archive:
            archive.add(out, ".", filter=anonymous)
    with tarfile.open(RECORDED) as archive:
        archive.extractall(tmp_path / "recorded", filter="data")
    places = sorted(path.relative_to(out) for path in out.glob("*/*/*"))
    assert places == sorted(path.relative_to(tmp_path / "recorded") for path in tmp_path.glob("recorded/*/*/*"))
    for place in places:
        mine, theirs = (open_megatron(root / place, tiny[place.parts[1]]) for root in (out, tmp_path / "recorded"))
        assert_same_bytes(mine.tensors, theirs.tensors)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without who made it and when."""
    member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
    return member


def test_what_megatron_core_saved_comes_back(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Of every model in every layout, as torch_dist and as `torch`, byte for byte."""
    with tarfile.open(RECORDED) as archive:
        archive.extractall(tmp_path, filter="data")
    saved = sorted(tmp_path.glob("*/*/*"))
    assert len(saved) == 2 * (sum(map(len, LAYOUTS.values())) + len(GROUPED))
    for folder in saved:
        model = tiny[folder.parent.name]
        assert_equal_tensors(folder, model, hf_config=model)


@pytest.mark.oracle
@pytest.mark.parametrize("layouts", LAYOUTS.values(), ids=LAYOUTS)
def test_megatron_core_computes_what_transformers_does(
    layouts: dict[str, dict[str, Any]], models: dict[str, Path], convert: Direction, tmp_path: Path
) -> None:
    """And what it saves again, cut as its ranks had it, comes back byte for byte: as torch_dist and as `torch`."""
    jobs = []
    for name, layout in layouts.items():
        job = job_of(layout, models[name], convert("hf-to-megatron", models[name], f"{name}/megatron"), tmp_path / name)
        jobs.append({**job, "tokens": TOKENS, "logits": str(tmp_path / name / "logits.npy")})
    run_ranks(*jobs)
    for name in layouts:
        model = models[name]
        assert_logits(tmp_path / name / "logits.npy", model)
        assert_equal_tensors(tmp_path / name / "again", model, hf_config=model)
        assert_equal_tensors(tmp_path / name / "ranks", model, hf_config=model)


@pytest.mark.oracle
def test_experts_in_one_matrix_come_back(models: dict[str, Path], convert: Direction, tmp_path: Path) -> None:
    """GroupedMLP's are transposed in its ranks' files, and are not in torch_dist."""
    model = models["mixture"]
    megatron = convert("hf-to-megatron", model, "megatron")
    jobs = [job_of(layout, model, megatron, tmp_path / str(number)) for number, layout in enumerate(GROUPED)]
    run_ranks(*jobs)
    saved = torch.load(tmp_path / "1" / "ranks" / "mp_rank_00" / "model_optim_rng.pt", weights_only=False)["model"]
    assert "decoder.layers.0.mlp.experts.weight1" in saved
    for number in range(len(GROUPED)):
        assert_equal_tensors(tmp_path / str(number) / "again", model, hf_config=model)
        assert_equal_tensors(tmp_path / str(number) / "ranks", model, hf_config=model)
