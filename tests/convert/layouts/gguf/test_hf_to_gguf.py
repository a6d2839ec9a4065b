"""Hugging Face to GGUF: what llama.cpp's own converter writes, what transformers reads, whatever the threads."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mconv.convert.cli.main import cli
from mconv.convert.containers.gguf import read_gguf
from mconv.convert.model.metadata import string

from support import checkpoints
from support.command_line import Command, Convert, Oracle
from support.gguf_compare import data, listing
from support.golden import Golden, describe_gguf, describe_value, digest


@pytest.fixture
def convert(command: Command, tmp_path: Path) -> Convert:
    """Convert a checkpoint with our command line."""

    def run(checkpoint: Path, *options: object, name: str = "ours.gguf") -> Path:
        result = command(cli, "hf-to-gguf", checkpoint, tmp_path / name, *options)
        assert result.code == 0, result.err
        return tmp_path / name

    return run


@pytest.mark.parametrize(
    ("name", "outtype"),
    [
        ("dense", "auto"),
        ("dense", "f32"),
        ("dense", "q8_0"),
        ("tied", "auto"),
        ("tied", "f32"),
        ("experts", "bf16"),
        ("odd", "q8_0"),
        ("mistral3", "bf16"),
    ],
)
def test_it_equals_llama_cpp(
    name: str, outtype: str, convert: Convert, oracle: Oracle, golden: Golden, request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(name)
    theirs = golden(lambda: describe_gguf(oracle(checkpoint, outtype)), checkpoint)
    assert describe_gguf(convert(checkpoint, "--outtype", outtype)) == theirs


def test_ministral3_differs_from_llama_cpp_in_its_template_alone(
    ministral3: Path, convert: Convert, oracle: Oracle, golden: Golden
) -> None:
    theirs = golden(lambda: describe_gguf(oracle(ministral3, "auto")), ministral3)
    written = convert(ministral3)
    ours = describe_gguf(written)
    assert "[INST]" in read_gguf(written).metadata["tokenizer.chat_template"].content
    # Not a template but the name of one that llama.cpp has built in.
    ours["keys"]["tokenizer.chat_template"] = describe_value(string("mistral-v3-tekken"))
    assert ours == theirs


@pytest.mark.parametrize(
    "members",
    [
        {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {
            "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
        },
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
            }
        },
        {"head_dim": None, "num_attention_heads": 8, "rope_theta": 10000.0},
    ],
    ids=["linear", "yarn", "llama3", "head_dim left out"],
)
def test_old_and_new_configurations_equal_llama_cpp(
    members: dict[str, Any], tmp_path: Path, convert: Convert, oracle: Oracle, golden: Golden
) -> None:
    shape: dict[str, Any] = {"head_dim": 32} if "head_dim" in members else {}
    checkpoint = checkpoints.llama(tmp_path / f"model-{digest(str(members).encode())}", num_hidden_layers=1, **shape)
    config = json.loads((checkpoint / "config.json").read_text())
    del config["rope_parameters"]
    config |= members
    config = {key: value for key, value in config.items() if value is not None}
    (checkpoint / "config.json").write_text(json.dumps(config))
    theirs = golden(lambda: describe_gguf(oracle(checkpoint, "auto")), checkpoint)
    assert describe_gguf(convert(checkpoint)) == theirs


def test_types_and_order_on_disk_may_be_mixed(tmp_path: Path, convert: Convert, oracle: Oracle, golden: Golden) -> None:
    checkpoint = checkpoints.llama(tmp_path / "mixed", num_hidden_layers=11)
    tensors = load_file(checkpoint / "model.safetensors")
    for name in tensors:
        if "norm" in name or "embed" in name:
            tensors[name] = tensors[name].float()
    save_file(tensors, checkpoint / "model.safetensors")
    theirs = golden(lambda: describe_gguf(oracle(checkpoint, "auto"))["tensors"], checkpoint)
    ours = convert(checkpoint)
    assert describe_gguf(ours)["tensors"] == theirs
    assert {tensor.dtype for tensor in read_gguf(ours).tensors} == {"F32", "BF16"}


def test_biases_equal_llama_cpp(tmp_path: Path, convert: Convert, oracle: Oracle, golden: Golden) -> None:
    checkpoint = checkpoints.llama(tmp_path / "biased", attention_bias=True, mlp_bias=True, num_hidden_layers=1)
    theirs = golden(lambda: describe_gguf(oracle(checkpoint, "auto"))["tensors"], checkpoint)
    assert describe_gguf(convert(checkpoint))["tensors"] == theirs


def test_only_what_is_rounded_is_said_to_be(tmp_path: Path, command: Command) -> None:
    """A router is float32 in every file, whatever it was before."""
    checkpoint = checkpoints.mixtral(tmp_path / "model", num_hidden_layers=1)
    tensors = load_file(checkpoint / "model.safetensors")
    for name, said in (("block_sparse_moe.gate.weight", False), ("self_attn.q_proj.weight", True)):
        tensors[f"model.layers.0.{name}"] = tensors[f"model.layers.0.{name}"].float()
        save_file(tensors, checkpoint / "model.safetensors")
        result = command(cli, "hf-to-gguf", checkpoint, tmp_path / "out.gguf", "--dry-run")
        assert ("float32 matrices are rounded" in result.err) is said


def test_fused_experts_are_the_experts(experts: Path, tmp_path: Path, convert: Convert) -> None:
    """transformers 5 holds the experts fused; a state dict saved as it stands has them so."""
    model = transformers.MixtralForCausalLM.from_pretrained(experts, dtype=torch.bfloat16)
    state = model.state_dict()
    assert "model.layers.0.mlp.experts.gate_up_proj" in state
    fused = tmp_path / "fused"
    fused.mkdir()
    for file in experts.iterdir():
        if file.suffix != ".safetensors":
            (fused / file.name).write_bytes(file.read_bytes())
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, fused / "model.safetensors")
    ours, usual = read_gguf(convert(fused)), read_gguf(convert(experts, name="usual.gguf"))
    assert sorted(listing(ours)) == sorted(listing(usual))
    by_name = {tensor.name: data(tensor) for tensor in usual.tensors}
    assert all(data(tensor) == by_name[tensor.name] for tensor in ours.tensors)


@pytest.mark.parametrize("name", ["dense", "tied"])
def test_transformers_reads_the_file_and_gives_the_same_logits(
    name: str, tmp_path: Path, convert: Convert, request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(name)
    convert(checkpoint, "--outtype", "f32")
    tokens = torch.arange(3, 67).unsqueeze(0)
    original = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    written = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="ours.gguf", dtype=torch.float32)
    with torch.no_grad():
        expected, found = original(tokens).logits, written(tokens).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_threads_do_not_change_the_file(dense: Path, convert: Convert) -> None:
    one = convert(dense, "--threads", "1", name="one.gguf")
    five = convert(dense, "--threads", "5", name="five.gguf")
    assert one.read_bytes() == five.read_bytes()


def test_the_dry_run_tells_the_size_to_the_byte(
    dense: Path, tmp_path: Path, command: Command, convert: Convert
) -> None:
    planned = command(cli, "hf-to-gguf", dense, tmp_path / "ours.gguf", "--dry-run", "--json").json
    assert list(planned) == ["schema_version", "files"]
    assert not (tmp_path / "ours.gguf").exists()
    written = convert(dense)
    (file,) = planned["files"]
    assert file["bytes"] == written.stat().st_size
    assert sum(file["tensors"].values()) == len(file["plan"]) == 75
    # 17 norms of 256 weights are float32.
    weights, norms = sum(math.prod(tensor.shape) for tensor in read_gguf(written).tensors), 17 * 256
    assert file["bits_per_weight"] == pytest.approx((16 * (weights - norms) + 32 * norms) / weights)


def test_provenance_comes_from_the_card_and_names_no_path(dense: Path, tmp_path: Path, command: Command) -> None:
    source = tmp_path / "Magistral-Small-2507"
    source.mkdir()
    for file in dense.iterdir():
        (source / file.name).symlink_to(file)
    card = "license: apache-2.0\nlanguage: [en, fr]\nbase_model: mistralai/Mistral-Small-24B-Base-2501\ntags: [chat]\n"
    (source / "README.md").write_text(f"---\n{card}---\n# A model\n")
    (source / "generation_config.json").unlink()
    (source / "generation_config.json").write_text('{"temperature": 0.7, "top_p": 0.95, "do_sample": true}')
    revision = "0123456789abcdef0123456789abcdef01234567"
    downloaded = source / ".cache/huggingface/download"
    downloaded.mkdir(parents=True)
    (downloaded / "config.json.metadata").write_text(f"{revision}\nabc\n0\n")
    assert command(cli, "hf-to-gguf", source, tmp_path / "a.gguf").code == 0
    found = {key: value.content for key, value in read_gguf(tmp_path / "a.gguf").metadata.items()}
    assert found["general.name"] == "Magistral-Small-2507"
    assert found["general.basename"] == "Magistral-Small"
    assert found["general.version"] == "2507"
    assert found["general.size_label"] == "6.8M"
    assert found["general.license"] == "apache-2.0"
    assert found["general.languages"] == ["en", "fr"]
    assert found["general.base_model.0.repo_url"] == "https://huggingface.co/mistralai/Mistral-Small-24B-Base-2501"
    assert found["general.sampling.temp"] == pytest.approx(0.7)
    assert found["mconv.source.revision"] == revision
    assert str(tmp_path).encode() not in (tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize("module", ["convert.cli.main", "quantize.cli", "validate.cli", "release.cli"])
def test_help_imports_nothing_heavy(module: str) -> None:
    heavy = {"numpy", "torch", "numba", "llama_cpp", "gguf", "transformers", "mistral_common"}
    code = f"import sys, mconv.{module}; print(*sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []


def test_a_source_with_a_tied_flag_and_an_output_matrix_keeps_both(
    tied: Path, tmp_path: Path, convert: Convert
) -> None:
    """What is on disk is carried: whether the matrix is used is the runtime's choice."""
    source = tmp_path / "both"
    source.mkdir()
    for file in tied.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors")
    assert "output.weight" in {tensor.name for tensor in read_gguf(convert(source)).tensors}
