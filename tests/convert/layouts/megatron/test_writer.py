"""What is written as a Megatron checkpoint: from any source, in any type, with what lies beside the weights."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mconv.convert.cli.main import cli
from mconv.convert.layouts.hf.reader import open_hf
from mconv.convert.layouts.megatron.reader import open_megatron
from mconv.convert.tensors.nodes import row_count
from mconv.quantize.cli import cli as mquant

from support import checkpoints
from support.command_line import Command, Direction

SMALL = {**checkpoints.SHAPE, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
DATA = "release/__0_0.distcp"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dense Mistral with settings of generation and a card."""
    folder = checkpoints.mistral(tmp_path_factory.mktemp("small") / "model", **SMALL)
    (folder / "generation_config.json").write_text('{"temperature": 0.7, "do_sample": true}')
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Small\n")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def convert(command: Command, tmp_path: Path) -> Direction:
    """Run one of mconv's commands, and return what it wrote."""

    def run(name: str, source: Path, out: str, *options: object) -> Path:
        result = command(cli, name, source, tmp_path / out, *options)
        assert result.code == 0, result.err
        return tmp_path / out

    return run


def values(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def edited(model: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """The model with other weights."""
    folder.mkdir()
    for path in model.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = values(model)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["dense", "experts", "tied"])
def test_the_detour_through_gguf_changes_no_byte(name: str, convert: Direction, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(name)
    outtype = "f32" if name == "tied" else "bf16"
    file = convert("hf-to-gguf", source, "model.gguf", "--outtype", outtype)
    ours, direct = convert("gguf-to-megatron", file, "detour"), convert("hf-to-megatron", source, "direct")
    assert (ours / DATA).read_bytes() == (direct / DATA).read_bytes()
    assert open_megatron(ours).spec == open_hf(source).spec
    mine, theirs = open_megatron(ours).vocabulary(), open_hf(source).vocabulary()
    assert (mine.tokens, mine.types, mine.chat_templates) == (theirs.tokens, theirs.types, theirs.chat_templates)


@pytest.mark.parametrize("dtype", ["auto", "f32", "f16"])
def test_quantized_tensors_are_decoded(
    dtype: str, model: Path, convert: Direction, command: Command, tmp_path: Path
) -> None:
    """In Q4_K_M the tensors that Megatron-Core fuses have several types."""
    assert command(mquant, model, "--type", "Q4_K_M", "--output", tmp_path / "m.gguf").code == 0
    folder = convert("gguf-to-hf", tmp_path / "m.gguf", "folder", "--dtype", dtype)
    megatron = convert("gguf-to-megatron", tmp_path / "m.gguf", "megatron", "--dtype", dtype)
    back = values(convert("megatron-to-hf", megatron, "back"))
    for name, tensor in values(folder).items():
        assert (
            back[name].dtype == tensor.dtype == {"f32": torch.float32, "f16": torch.float16}.get(dtype, torch.bfloat16)
        )
        assert torch.equal(back[name], tensor), name


def test_what_lies_beside_the_weights_is_carried(model: Path, convert: Direction) -> None:
    megatron = convert("hf-to-megatron", model, "megatron")
    back = convert("megatron-to-hf", megatron, "back")
    names = {path.relative_to(model) for path in model.rglob("*") if path.is_file() and path.suffix != ".safetensors"}
    assert {Path("README.md"), Path("additional_chat_templates/tool_use.jinja")} < names
    for name in names - {Path("config.json")}:
        assert (back / name).read_bytes() == (model / name).read_bytes(), name
    config, original = (json.loads((folder / "config.json").read_text()) for folder in (back, model))
    assert config == original
    cast = convert("megatron-to-hf", megatron, "cast", "--dtype", "f32")
    assert json.loads((cast / "config.json").read_text()) == {**original, "dtype": "float32"}


def test_each_chunk_is_a_whole_torch_file(model: Path, convert: Direction) -> None:
    megatron = convert("hf-to-megatron", model, "megatron")
    index = pickle.loads((megatron / "release/.metadata").read_bytes())
    data = (megatron / DATA).read_bytes()
    sizes = {key: entry.size for key, entry in index.state_dict_metadata.items() if hasattr(entry, "size")}
    covered = 0
    for place, info in index.storage_data.items():
        stored = BytesIO(data[info.offset : info.offset + info.length])
        assert zipfile.ZipFile(stored).testzip() is None
        stored.seek(0)
        loaded = torch.load(stored, weights_only=True)
        if place.fqn in sizes:
            assert len(loaded.shape) == len(sizes[place.fqn])
            covered += loaded.numel()
    assert covered == sum(size.numel() for size in sizes.values())


def test_neither_threads_nor_chunks_change_a_byte(
    model: Path, convert: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, three = (convert("hf-to-megatron", model, str(n), "--threads", n) for n in (1, 3))
    assert (one / DATA).read_bytes() == (three / DATA).read_bytes()
    assert (one / "release/.metadata").read_bytes() == (three / "release/.metadata").read_bytes()
    monkeypatch.setattr("mconv.convert.layouts.megatron.writer._CHUNK_BYTES", 150_001)
    monkeypatch.setattr("mconv.convert.engine.jobs.CHUNK_WEIGHTS", 50_000)
    back = convert("megatron-to-hf", convert("hf-to-megatron", model, "cut"), "back")
    assert (back / "model.safetensors").read_bytes() == (
        convert("megatron-to-hf", one, "b") / "model.safetensors"
    ).read_bytes()
    assert all(torch.equal(tensor, values(back)[name]) for name, tensor in values(model).items())


def test_each_tensor_keeps_its_own_type(model: Path, convert: Direction, tmp_path: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "norm" in name:
                tensors[name] = tensors[name].float() + 1e-4
        tensors["lm_head.weight"] = tensors["lm_head.weight"].half()

    source = edited(model, tmp_path / "mixed", widen)
    for layout, options in (("megatron", ()), ("gguf", ("--outtype", "bf16"))):
        there = convert(f"hf-to-{layout}", source, f"hf-to-{layout}", *options)
        back = values(convert(f"{layout}-to-hf", there, f"{layout}-to-hf"))
        for name, tensor in values(source).items():
            if name == "lm_head.weight" and layout == "gguf":
                continue
            assert back[name].dtype == tensor.dtype
            assert torch.equal(back[name], tensor), name


def test_several_types_under_one_key_become_float32(model: Path, convert: Direction, tmp_path: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.1.self_attn.k_proj.weight"
        tensors[name] = tensors[name].float() * 1.001

    source = edited(model, tmp_path / "mixed", widen)
    megatron = convert("hf-to-megatron", source, "megatron")
    tensors = open_megatron(megatron).tensors
    for name, tensor in values(source).items():
        found = tensors[name]
        assert found.dtype == ("F32" if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj") else "BF16")
        if found.dtype == "F32":
            rows = found.read(0, row_count(found.shape))
            assert np.array_equal(rows, tensor.float().numpy()), name


def test_a_weight_that_is_not_finite_leaves_nothing(model: Path, command: Command, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.self_attn.v_proj.weight"][3, 5] = torch.nan

    source = edited(model, tmp_path / "spoiled", spoil)
    result = command(cli, "hf-to-megatron", source, tmp_path / "out")
    assert result.code == 3
    assert "model.layers.1.self_attn.v_proj.weight" in result.err
    assert "row 3, column 5" in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spoiled"]


def test_a_folder_that_another_run_writes_is_left_to_it(model: Path, command: Command, tmp_path: Path) -> None:
    growing = tmp_path / "out.partial"
    growing.mkdir()
    (growing / "half").write_text("of a model")
    handle = os.open(growing, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    result = command(cli, "hf-to-megatron", model, tmp_path / "out")
    assert (result.code, "being written by another run" in result.err) == (4, True)
    assert [path.name for path in growing.iterdir()] == ["half"]
    os.close(handle)
    # What a killed run left behind is no obstacle, and no part of the checkpoint.
    assert command(cli, "hf-to-megatron", model, tmp_path / "out").code == 0
    assert not (tmp_path / "out" / "half").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_and_an_empty_folder_are_written_into(model: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for options in ((), ("--overwrite",)):
        assert command(cli, "hf-to-megatron", model, tmp_path / "link", *options).code == 0
        assert open_megatron(tmp_path / "disk").spec == open_hf(model).spec
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert (tmp_path / "link").is_symlink()


def test_the_plan_is_what_is_written(model: Path, command: Command, tmp_path: Path) -> None:
    planned = command(cli, "hf-to-megatron", model, tmp_path / "out", "--dry-run", "--json").json
    assert not (tmp_path / "out").exists()
    written = command(cli, "hf-to-megatron", model, tmp_path / "out", "--json").json
    files = {file["path"]: file["bytes"] for file in (*written["files"], *written["other_files"])}
    assert files == {str(path): path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert (planned["bytes"], planned["other_files"]) == (written["bytes"], written["other_files"])
    assert written["bytes"] == sum(files.values())
    assert sum(row["bytes"] for row in planned["files"][0]["plan"]) == 2 * sum(
        t.numel() for t in values(model).values()
    )
