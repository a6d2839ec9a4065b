"""mval weights: folders that are not whole are compared as far as they go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mconv.convert.cli.main import cli as mconv
from mconv.convert.containers.safetensors import read_tensors

from support import mutations
from support.command_line import Command
from support.weight_checks import EXPERT, LAYER, Make, compare, edit_config, found


@pytest.fixture(scope="module")
def shards(small: Path, make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in several shards with an index."""
    out = tmp_path_factory.mktemp("shards") / "folder"
    arguments = ["gguf-to-hf", str(make(small, "BF16")), str(out), "--max-shard-size", "1MB"]
    mconv.main(arguments, standalone_mode=False)
    return out


def tensors_in(shard: Path) -> list[tuple[str, str]]:
    return [("missing_tensor", tensor.name) for tensor in read_tensors(shard, 0)]


def test_a_lost_shard_leaves_the_rest_to_be_compared(shards: Path, small: Path, tmp_path: Path) -> None:
    assert found(compare(shards, small)) == []
    lost, cut = (shutil.copytree(shards, tmp_path / name) for name in ("lost", "cut"))
    first = min(lost.glob("model-*"))
    told = tensors_in(first)
    first.unlink()
    last = max(cut.glob("model-*"))
    told_of_last = tensors_in(last)
    last.write_bytes(last.read_bytes()[:-1])
    for artifact, missing in ((lost, told), (cut, told_of_last)):
        result = compare(artifact, small)
        assert found(result) == [("unreadable", artifact.name), *missing]
        assert result.count("exact") == len(result.tensors) > 10


def test_an_index_that_contradicts_the_shards_is_told_once(shards: Path, small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "folder")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] |= {"a": content["weight_map"]["model.norm.weight"], "b": min(content["weight_map"].values())}
    index.write_text(json.dumps(content))
    result = compare(folder, small)
    assert (found(result), result.count("exact")) == ([("unreadable", "folder")], len(result.tensors))
    assert result.findings[0].what.endswith("but is not; and 1 more like it")


def test_a_tensor_that_cannot_be_read_is_named(small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "folder")
    name = LAYER + "mlp.up_proj.weight"
    mutations.change_tensors(folder, lambda tensors: tensors.update({name: tensors[name].double()}))
    result = compare(folder, small)
    assert found(result) == [("unreadable", name)]
    assert "F64" in result.findings[0].what


def test_a_stack_of_experts_of_another_shape_is_named(experts: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(experts, tmp_path / "folder")
    names = [f"{EXPERT}{expert}.w2.weight" for expert in range(7)]
    fused = "model.layers.0.mlp.experts.down_proj"

    def fuse(tensors: dict) -> None:
        tensors[fused] = torch.stack([tensors[name] for name in names])
        for name in (*names, f"{EXPERT}7.w2.weight"):
            del tensors[name]

    mutations.change_tensors(folder, fuse)
    result = compare(folder, experts)
    assert found(result) == [("wrong_shape", f"{EXPERT}*.w2.weight")]
    assert "[7, 256, 512], but the reference has [8, 256, 512]" in result.findings[0].what


def test_a_megatron_folder_that_is_not_whole(small: Path, command: Command, tmp_path: Path) -> None:
    def megatron(name: str, change: Callable[[dict[str, torch.Tensor]], object], **config: object) -> Path:
        folder = shutil.copytree(small, tmp_path / name)
        mutations.change_tensors(folder, change)
        edit_config(folder, **config)
        assert command(mconv, "hf-to-megatron", folder, tmp_path / f"{name}-megatron").code == 0
        return tmp_path / f"{name}-megatron"

    def cut_layer(tensors: dict) -> None:
        for name in [name for name in tensors if ".layers.3." in name]:
            del tensors[name]

    def add_biases(tensors: dict) -> None:
        rows = {"q": 256, "k": 128, "v": 128, "o": 256}
        for layer in range(4):
            names = {f"model.layers.{layer}.self_attn.{which}_proj.bias": size for which, size in rows.items()}
            tensors |= {name: torch.zeros(size, dtype=torch.bfloat16) for name, size in names.items()}

    tied = compare(megatron("tied", lambda tensors: tensors.pop("lm_head.weight"), tie_word_embeddings=True), small)
    assert found(tied) == [("hyperparameter", "tied"), ("missing_tensor", "lm_head.weight")]
    assert tied.count("exact") == len(tied.tensors) > 30
    short = compare(megatron("short", cut_layer, num_hidden_layers=3), small)
    assert {kind for kind, _ in found(short)} == {"hyperparameter", "wrong_shape"}
    assert ("wrong_shape", "decoder.layers.self_attention.linear_qkv.weight") in found(short)
    assert (len(short.findings), short.count("exact")) == (7, 3)
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True}
    biased = compare(megatron("biased", add_biases, **llama), small)
    assert {kind for kind, _ in found(biased)} == {"hyperparameter", "extra_tensor"}
    assert (len(biased.extra), biased.count("exact")) == (16, len(biased.tensors))


def test_a_folder_that_does_not_say_what_it_is_is_compared(small: Path, make: Make, tmp_path: Path) -> None:
    folders = [shutil.copytree(small, tmp_path / "hf"), shutil.copytree(make(small, "megatron"), tmp_path / "megatron")]
    for folder in folders:
        (folder / "config.json").unlink()
        (folder / "tokenizer.model").unlink()
        result = compare(folder, small)
        assert (found(result), result.count("exact")) == ([("unreadable", folder.name)], len(result.tensors))
        assert len(result.tensors) > 30
