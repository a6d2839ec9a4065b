"""mval weights: untouched artifacts pass in every layout and type, and each mistake is named for what it is."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import checkpoints
import gguf
import mutations
import numpy as np
import pytest
import torch
from gguf_parts import write_parts
from legacy_imatrix import write_legacy_imatrix

from convert.cli import cli as mconv
from convert.layouts import open_checkpoint
from convert.layouts.gguf_file import read_gguf
from convert.layouts.safetensors import read_tensors
from convert.metadata import float32, uint32
from convert.rearrange import rope_interleave
from convert.types import BlockType
from quantize import ggml
from quantize.cli import cli as mquant
from quantize.imatrix import read_imatrix
from validate.cli import cli
from validate.findings import failed
from validate.weights.compare import compare_weights
from validate.weights.errors import LIMITS
from validate.weights.kernels import damaged_blocks, measure
from validate.weights.pairs import pair_tensors
from validate.weights.result import WeightsResult
from validate.weights.verdict import is_sound

Make = Callable[[Path, str], Path]
Mutation = Callable[[Path], object]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral of four layers whose query and output matrices are square."""
    folder = tmp_path_factory.mktemp("weights") / "small"
    return checkpoints.mistral(folder, num_attention_heads=4, num_hidden_layers=4)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """An artifact of a checkpoint, made by mconv or mquant, each once: by type, or "megatron"."""
    folder = tmp_path_factory.mktemp("artifacts")

    @cache
    def made(source: Path, kind: str) -> Path:
        if kind == "megatron":
            out = folder / f"{source.name}-megatron"
            mconv.main(["hf-to-megatron", str(source), str(out)], standalone_mode=False)
            return out
        out = folder / f"{source.name}-{kind}.gguf"
        if kind in ("BF16", "F16", "F32"):
            arguments = ["hf-to-gguf", str(source), str(out), "--outtype", kind.lower()]
            mconv.main(arguments, standalone_mode=False)
        else:
            mquant.main([str(source), "--type", kind, "--output", str(out)], standalone_mode=False)
        return out

    return made


def compare(artifact: Path, reference: Path, **options: object) -> WeightsResult:
    return compare_weights(artifact, open_checkpoint(reference)[1], **options)  # type: ignore[arg-type]


def found(result: WeightsResult) -> list[tuple[str, str]]:
    """Kind and subject of each finding."""
    return [(finding.kind, finding.subject) for finding in result.findings]


def statuses(result: WeightsResult) -> set[tuple[str, str]]:
    return {(tensor.type, tensor.status) for tensor in result.tensors}


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_K_M", "Q3_K_M", "megatron"])
@pytest.mark.parametrize("model", ["small", "tied", "experts"])
def test_an_untouched_artifact_passes(model: str, kind: str, make: Make, request: pytest.FixtureRequest) -> None:
    reference = request.getfixturevalue(model)
    artifact = make(reference, kind)
    result = compare(artifact, reference)
    assert found(result) == []
    assert len(result.tensors) == len(open_checkpoint(reference)[1].tensors)
    assert (result.missing, result.extra) == ((), ())
    # Only what our kernels or a plain loop encode is held against its bytes.
    assert statuses(result) == {(tensor.type, expected_status(tensor.type)) for tensor in result.tensors}
    assert result.bytes > sum(file.stat().st_size for file in reference.glob("*.safetensors"))


def expected_status(kind: str) -> str:
    return "quantized" if kind == "Q3_K" else "exact"


@pytest.mark.parametrize("kind", ["BF16", "Q4_K_M", "Q3_K_M"])
def test_the_errors_are_those_of_numpy(kind: str, small: Path, make: Make) -> None:
    artifact = make(small, kind)
    reference = open_checkpoint(small)[1]
    rows = [row for row in compare(artifact, small).tensors if row.layer == 2 and row.kind not in ("attn_q", "attn_k")]
    for row in rows:  # rows of queries and keys are in another order
        stored = mutations.stored_rows(artifact, row.gguf)
        values = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[row.type]).astype(np.float64)
        bits = reference.tensors[row.name].read(0, row.shape[0]).astype(np.uint32) << 16
        truth = bits.view(np.float32).astype(np.float64).reshape(row.shape)
        values = values.reshape(row.shape)
        assert row.relative_rmse == pytest.approx(np.sqrt(((values - truth) ** 2).sum() / (truth**2).sum()), rel=1e-6)
        assert row.max_error == pytest.approx(np.abs(values - truth).max(), rel=1e-5)
        lengths = np.linalg.norm(values) * np.linalg.norm(truth)
        assert row.cosine == pytest.approx((values * truth).sum() / lengths, rel=1e-9)
        assert row.bytes == stored.size
    assert len(rows) == 7


def test_any_layout_is_a_reference(small: Path, make: Make, command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    megatron, file = make(small, "megatron"), make(small, "BF16")
    back = tmp_path / "back"
    assert command(mconv, "megatron-to-hf", megatron, back).code == 0
    for reference in (small, megatron, file):
        for artifact in (small, megatron, file, back, make(small, "Q4_K_M")):
            result = compare(artifact, reference)
            assert (found(result), result.count("exact")) == ([], len(result.tensors)), (artifact, reference)


def test_a_quantized_reference_is_decoded(small: Path, make: Make, command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    quantized, decoded = make(small, "Q4_K_M"), tmp_path / "decoded"
    assert command(mconv, "gguf-to-hf", quantized, decoded, "--dtype", "f32").code == 0
    result = compare(decoded, quantized)
    assert (found(result), statuses(result)) == ([], {("F32", "exact")})
    result = compare(make(small, "Q3_K_M"), make(small, "Q3_K_M"))
    assert (found(result), result.count("exact")) == ([], len(result.tensors))


def test_summaries_add_up(experts: Path, make: Make) -> None:
    result = compare(make(experts, "Q4_K_M"), experts)
    for rows in (result.by_type, result.by_kind, result.by_layer):
        assert sum(row.tensors for row in rows) == len(result.tensors)
        assert sum(row.exact for row in rows) == result.count("exact")
        assert sum(row.bytes for row in rows) == sum(tensor.bytes for tensor in result.tensors)
    assert [row.key for row in result.by_layer] == [None, 0, 1]
    stacks = next(row for row in result.by_kind if row.key == "ffn_gate_exps")
    assert stacks.tensors == 16
    by_hand = [tensor for tensor in result.tensors if tensor.kind == "ffn_gate_exps"]
    assert stacks.relative_rmse == pytest.approx(np.sqrt(np.mean([tensor.relative_rmse**2 for tensor in by_hand])))
    assert stacks.worst == max(by_hand, key=lambda tensor: tensor.relative_rmse).name


LAYER = "model.layers.1."
MISTAKES: dict[str, tuple[Mutation, list[tuple[str, str]]]] = {
    "Q and K not permuted": (
        lambda path: mutations.undo_interleave(path, "blk.1.attn_q.weight", "blk.1.attn_k.weight"),
        [("rows_permuted", LAYER + "self_attn.q_proj.weight"), ("rows_permuted", LAYER + "self_attn.k_proj.weight")],
    ),
    "Q permuted twice": (
        lambda path: mutations.interleave_again(path, "blk.1.attn_q.weight"),
        [("rows_permuted", LAYER + "self_attn.q_proj.weight")],
    ),
    "gate and up swapped": (
        lambda path: mutations.swap(path, "blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"),
        [("swapped", LAYER + "mlp.gate_proj.weight")],
    ),
    "two layers' values swapped": (
        lambda path: mutations.swap(path, "blk.0.attn_v.weight", "blk.3.attn_v.weight"),
        [("swapped", "model.layers.0.self_attn.v_proj.weight")],
    ),
    "keys and values swapped, of which only keys are interleaved": (
        lambda path: mutations.swap(path, "blk.1.attn_k.weight", "blk.1.attn_v.weight"),
        [("swapped", LAYER + "self_attn.k_proj.weight")],
    ),
    "queries and outputs swapped": (
        lambda path: mutations.swap(path, "blk.1.attn_q.weight", "blk.1.attn_output.weight"),
        [("swapped", LAYER + "self_attn.q_proj.weight")],
    ),
    "a layer duplicated": (
        lambda path: mutations.copy_layer(path, 0, 1),
        [("duplicated", "model.layers.1")],
    ),
    "a square tensor transposed": (
        lambda path: mutations.transpose(path, "blk.2.attn_output.weight"),
        [("transposed", "model.layers.2.self_attn.o_proj.weight")],
    ),
    "a norm one too large": (
        lambda path: mutations.change_values(path, "blk.1.attn_norm.weight", lambda values: values + 1),
        [("offset", LAYER + "input_layernorm.weight")],
    ),
    "a norm twice as large": (
        lambda path: mutations.change_values(path, "blk.1.attn_norm.weight", lambda values: values * 2),
        [("scaled", LAYER + "input_layernorm.weight")],
    ),
    "a matrix a tenth too large": (
        lambda path: mutations.change_values(path, "blk.1.ffn_up.weight", lambda values: values * 1.1),
        [("scaled", LAYER + "mlp.up_proj.weight")],
    ),
    "the vocabulary shifted by one": (
        lambda path: mutations.shift_rows(path, "token_embd.weight"),
        [("rows_shifted", "model.embed_tokens.weight")],
    ),
    "rows in no order": (
        lambda path: mutations.move_rows(path, "blk.1.ffn_up.weight", np.random.default_rng(0).permutation(512)),
        [("rows_permuted", LAYER + "mlp.up_proj.weight")],
    ),
    "another tensor altogether": (
        lambda path: mutations.change_values(
            path, "blk.1.ffn_up.weight", lambda values: np.random.default_rng(0).normal(0, 0.02, values.shape)
        ),
        [("different", LAYER + "mlp.up_proj.weight")],
    ),
    "rope theta": (
        lambda path: mutations.rewrite(path, keys={"llama.rope.freq_base": float32(1e4)}),
        [("hyperparameter", "rope.theta")],
    ),
    "head count": (
        lambda path: mutations.rewrite(path, keys={"llama.attention.head_count": uint32(2)}),
        [("hyperparameter", "heads")],
    ),
    "head count that cannot be": (
        lambda path: mutations.rewrite(path, keys={"llama.attention.head_count": uint32(3)}),
        [("hyperparameter", "heads")],
    ),
    "a layer too few in the header": (
        lambda path: mutations.rewrite(path, keys={"llama.block_count": uint32(3)}),
        [("hyperparameter", "layers")],
    ),
    "a missing tensor": (
        lambda path: mutations.rewrite(path, drop=["blk.1.ffn_up.weight"]),
        [("missing_tensor", LAYER + "mlp.up_proj.weight")],
    ),
    "a missing output": (
        lambda path: mutations.rewrite(path, drop=["output.weight"]),
        [("missing_tensor", "lm_head.weight")],
    ),
    "a missing layer": (
        lambda path: mutations.rewrite(
            path, drop=[tensor.name for tensor in read_gguf(path).tensors if tensor.name.startswith("blk.1.")]
        ),
        [("missing_tensor", "model.layers.1")],
    ),
    "an extra tensor": (
        lambda path: mutations.rewrite(path, add={"blk.1.odd.weight": np.ones(4)}),
        [("extra_tensor", "blk.1.odd.weight")],
    ),
    "a bias that the model has not": (
        lambda path: mutations.rewrite(path, add={"blk.1.attn_q.bias": np.ones(256)}),
        [("extra_tensor", LAYER + "self_attn.q_proj.bias")],
    ),
    "a shape": (
        lambda path: mutations.rewrite(path, add={"blk.1.attn_k.weight": np.ones((64, 256))}),
        [("wrong_shape", LAYER + "self_attn.k_proj.weight")],
    ),
    "a shape turned": (
        lambda path: mutations.rewrite(path, add={"blk.1.ffn_up.weight": np.ones((256, 512))}),
        [("transposed", LAYER + "mlp.up_proj.weight")],
    ),
    "NaN in a norm": (
        lambda path: mutations.change_values(path, "output_norm.weight", lambda values: values * np.nan),
        [("not_finite", "model.norm.weight")],
    ),
    "NaN in a matrix": (
        lambda path: mutations.write_bytes(path, "blk.1.ffn_up.weight", 3, b"\xff\x7f"),
        [("not_finite", LAYER + "mlp.up_proj.weight")],
    ),
    # The first bytes of a row of Q4_K are its scale and its minimum as float16, then six-bit scales, then codes.
    "a bit of a large part of a value or of a code": (
        lambda path: mutations.flip_bit(path, "blk.1.ffn_up.weight", 5, 41, 3),
        [("bit_flip", LAYER + "mlp.up_proj.weight")],
    ),
    "the last bit of a value or of a scale": (
        lambda path: mutations.flip_bit(path, "blk.1.ffn_up.weight", 5, 0, 0),
        [("bit_flip", LAYER + "mlp.up_proj.weight")],
    ),
    "a bit of a value or of a six-bit scale": (
        lambda path: mutations.flip_bit(path, "blk.1.ffn_up.weight", 5, 6, 4),
        [("bit_flip", LAYER + "mlp.up_proj.weight")],
    ),
    "a bit of a norm": (
        lambda path: mutations.flip_bit(path, "blk.1.attn_norm.weight", 5, 1, 1),
        [("bit_flip", LAYER + "input_layernorm.weight")],
    ),
}


@pytest.mark.parametrize("kind", ["BF16", "Q4_K_M"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, kind: str, small: Path, make: Make, tmp_path: Path) -> None:
    mutation, expected = MISTAKES[mistake]
    artifact = Path(shutil.copy(make(small, kind), tmp_path))
    mutation(artifact)
    result = compare(artifact, small)
    assert found(result) == expected
    assert {finding.severity for finding in result.findings} == {"fail"}
    # Whatever is not accused is whole.
    untouched = [row for row in result.tensors if not any(row.name.startswith(subject) for _, subject in expected)]
    told = " ".join(finding.what for finding in result.findings)
    assert all(row.status == "exact" or row.name in told for row in untouched)


STACKS = tuple(f"blk.0.ffn_{name}_exps.weight" for name in ("gate", "up", "down"))
EXPERT = "model.layers.0.block_sparse_moe.experts."
MISTAKES_OF_EXPERTS: dict[str, tuple[Mutation, list[tuple[str, str]]]] = {
    "two experts swapped": (
        lambda path: mutations.swap_experts(path, STACKS, 2, 5),
        [("experts_swapped", f"{EXPERT}2")],
    ),
    "one matrix of two experts swapped": (
        lambda path: mutations.swap_experts(path, STACKS[:1], 2, 5),
        [("experts_swapped", f"{EXPERT}2.w1.weight")],
    ),
    "experts moved round": (
        lambda path: mutations.move_rows(path, STACKS[2], np.roll(np.arange(8 * 256), 256)),
        [("experts_swapped", f"{EXPERT}{expert}.w2.weight") for expert in range(8)],
    ),
    "gate and up swapped": (
        lambda path: mutations.swap(path, STACKS[0], STACKS[1]),
        [("swapped", f"{EXPERT}*.w1.weight")],
    ),
    "a missing stack": (
        lambda path: mutations.rewrite(path, drop=[STACKS[1]]),
        [("missing_tensor", f"{EXPERT}*.w3.weight")],
    ),
    "number of experts": (
        lambda path: mutations.rewrite(path, keys={"llama.expert_count": uint32(4)}),
        [("hyperparameter", "experts")],
    ),
    "experts of a token": (
        lambda path: mutations.rewrite(path, keys={"llama.expert_used_count": uint32(1)}),
        [("hyperparameter", "experts_per_token")],
    ),
}


@pytest.mark.parametrize("kind", ["BF16", "Q4_K_M"])
@pytest.mark.parametrize("mistake", MISTAKES_OF_EXPERTS)
def test_a_mistake_with_experts_is_named(mistake: str, kind: str, experts: Path, make: Make, tmp_path: Path) -> None:
    mutation, expected = MISTAKES_OF_EXPERTS[mistake]
    artifact = Path(shutil.copy(make(experts, kind), tmp_path))
    mutation(artifact)
    assert found(compare(artifact, experts)) == expected


def interleave(tensors: dict) -> None:
    name = LAYER + "self_attn.k_proj.weight"
    tensors[name] = tensors[name][rope_interleave(2, 64)]


def spoil(tensors: dict) -> None:
    tensors[LAYER + "mlp.down_proj.weight"][7, 9] = float("inf")


MISTAKES_OF_FOLDERS: dict[str, tuple[Mutation, list[tuple[str, str]]]] = {
    "rows in llama.cpp's order": (
        lambda folder: mutations.change_tensors(folder, interleave),
        [("rows_permuted", LAYER + "self_attn.k_proj.weight")],
    ),
    "infinity": (
        lambda folder: mutations.change_tensors(folder, spoil),
        [("not_finite", LAYER + "mlp.down_proj.weight")],
    ),
    "a missing tensor": (
        lambda folder: mutations.change_tensors(folder, lambda tensors: tensors.pop("lm_head.weight")),
        [("missing_tensor", "lm_head.weight")],
    ),
    "head count": (
        lambda folder: edit_config(folder, num_attention_heads=2),
        [("hyperparameter", "heads")],
    ),
    "a scaled rotary embedding": (
        lambda folder: edit_config(folder, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}),
        [("hyperparameter", "rope.type")],
    ),
    "an output that is the embedding": (
        lambda folder: edit_config(folder, tie_word_embeddings=True),
        [("hyperparameter", "tied")],
    ),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), [("unreadable", "folder")]),
}


def edit_config(folder: Path, **members: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


@pytest.mark.parametrize("mistake", MISTAKES_OF_FOLDERS)
def test_a_mistake_in_a_folder_is_named(mistake: str, small: Path, make: Make, tmp_path: Path) -> None:
    mutation, expected = MISTAKES_OF_FOLDERS[mistake]
    artifact = shutil.copytree(small, tmp_path / "folder")
    mutation(artifact)
    assert found(compare(artifact, make(small, "BF16"))) == [
        pair
        for pair in expected
        if pair[1] != "tied"  # a GGUF file says it by its tensors alone
    ]
    assert found(compare(artifact, small)) == expected


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
    assert result.findings[0].what.endswith("which does not have it; and 1 more like it")


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
    assert "[7, 256, 512], and the reference has [8, 256, 512]" in result.findings[0].what


def test_a_megatron_folder_that_is_not_whole(small: Path, command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def megatron(name: str, change: Mutation, **config: object) -> Path:
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


@pytest.fixture(scope="module")
def importance(small: Path, make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An importance matrix, and a file quantized with it."""
    folder = tmp_path_factory.mktemp("importance")
    random = np.random.default_rng(1)
    entries = {
        tensor.name: random.lognormal(sigma=2, size=tensor.shape[-1]).astype(np.float32)
        for tensor in read_gguf(make(small, "BF16")).tensors
        if len(tensor.shape) > 1 and tensor.name.startswith("blk.")
    }
    matrix = write_legacy_imatrix(folder / "imatrix.dat", entries)
    out = folder / "weighed.gguf"
    arguments = [str(small), "--type", "Q4_K_M", "--imatrix", str(matrix), "--output", str(out)]
    mquant.main(arguments, standalone_mode=False)
    return matrix, out


def test_importance_makes_a_file_exact(importance: tuple[Path, Path], small: Path, make: Make) -> None:
    matrix, weighed = read_imatrix(importance[0]), importance[1]
    for artifact in (weighed, make(small, "Q4_K_M")):
        result = compare(artifact, small, matrix=matrix)
        assert (found(result), result.count("exact")) == ([], len(result.tensors))


def test_unknown_importance_leaves_the_errors(importance: tuple[Path, Path], small: Path) -> None:
    result = compare(importance[1], small)
    assert found(result) == [("other_encoder", "weighed.gguf")]
    assert result.findings[0].severity == "note"
    weighed = {row.status for row in result.tensors if row.layer is not None and row.type != "F32"}
    assert (weighed, result.count("different")) == ({"quantized"}, 0)


@pytest.mark.parametrize(("byte", "bit"), [(41, 3), (41, 0), (1, 1), (7, 1), (7, 5)])
def test_a_flipped_bit_shows_without_the_encoder(
    byte: int, bit: int, importance: tuple[Path, Path], small: Path, tmp_path: Path
) -> None:
    artifact = Path(shutil.copy(importance[1], tmp_path))
    mutations.flip_bit(artifact, "blk.1.ffn_up.weight", 5, byte, bit)
    result = compare(artifact, small)
    assert found(result)[0] == ("bit_flip", LAYER + "mlp.up_proj.weight")
    assert "row 5" in result.findings[0].what


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K"])
def test_a_small_factor_shows_in_a_fine_type(kind: str, small: Path, make: Make, tmp_path: Path) -> None:
    artifact = Path(shutil.copy(make(small, kind), tmp_path))
    mutations.change_values(artifact, "blk.1.ffn_up.weight", lambda values: values * 1.01)
    result = compare(artifact, small)
    assert found(result)[0] == ("scaled", LAYER + "mlp.up_proj.weight")
    assert any(f"times 1.0{digits}" in result.findings[0].what for digits in ("09", "10"))


def test_mistakes_show_in_a_type_that_keeps_little(importance: tuple[Path, Path], small: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "little.gguf"
    options = ["--imatrix", importance[0], "--output-tensor-type", "Q8_0", "--token-embedding-type", "Q8_0"]
    mquant.main([str(small), "--type", "IQ3_S", "--output", str(artifact), *map(str, options)], standalone_mode=False)
    assert found(compare(artifact, small)) == []
    mutations.swap(artifact, "blk.0.attn_k.weight", "blk.1.attn_k.weight")
    up, gate = (mutations.stored_rows(artifact, f"blk.1.ffn_{name}.weight") for name in ("up", "gate"))
    up[100:140] = gate[100:140]
    mutations.stored_rows(artifact, "blk.2.ffn_up.weight")[7] = 0
    assert sorted(found(compare(artifact, small))) == [
        ("bit_flip", "model.layers.2.mlp.up_proj.weight"),
        ("different", LAYER + "mlp.up_proj.weight"),
        ("swapped", "model.layers.0.self_attn.k_proj.weight"),
    ]


def test_rows_of_zeros_are_counted(small: Path, make: Make, tmp_path: Path) -> None:
    artifact = Path(shutil.copy(make(small, "Q4_K_M"), tmp_path))
    mutations.stored_rows(artifact, "blk.1.ffn_up.weight")[100:140] = 0
    result = compare(artifact, small)
    assert found(result) == [("different", LAYER + "mlp.up_proj.weight")]
    assert "40 of 512 blocks" in result.findings[0].what
    assert "row 100" in result.findings[0].what


def test_a_detour_through_bfloat16_is_a_warning(tied: Path, make: Make, command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder, artifact = tmp_path / "rounded", tmp_path / "rounded.gguf"
    assert command(mconv, "gguf-to-hf", make(tied, "BF16"), folder, "--dtype", "bf16").code == 0
    assert command(mconv, "hf-to-gguf", folder, artifact, "--outtype", "f32").code == 0
    result = compare(artifact, tied)
    assert [subject for _, subject in found(result)] == [row.name for row in result.tensors]
    assert {(finding.kind, finding.severity) for finding in result.findings} == {("rounded", "warn")}


@pytest.mark.parametrize("between", ["BF16", "F16"])
def test_a_detour_before_quantizing_is_no_damage(between: str, tied: Path, make: Make, tmp_path: Path) -> None:
    file = make(tied, between)
    kinds = ("Q4_K_M", "Q8_0")
    options = [option for kind in kinds for option in ("--type", kind)]
    mquant.main([str(file), *options, "--output-dir", str(tmp_path)], standalone_mode=False)
    for kind in kinds:
        (artifact,) = tmp_path.glob(f"*-{kind}.gguf")
        result = compare(artifact, tied)
        assert (failed(result.findings), result.count("different")) == ([], 0)
        assert failed(compare(make(tied, kind), file).findings) == []
        mutations.flip_bit(artifact, "blk.1.ffn_up.weight", 5, 9, 6)
        assert found(compare(artifact, tied))[0] == ("bit_flip", LAYER + "mlp.up_proj.weight")


def test_a_file_in_parts(small: Path, make: Make, tmp_path: Path) -> None:
    first = write_parts(make(small, "Q4_K_M"), tmp_path / "parts", 9)
    for artifact, reference in ((first, small), (make(small, "Q4_K_M"), first), (first, first)):
        result = compare(artifact, reference)
        assert (found(result), result.count("exact")) == ([], len(result.tensors))
    second, third, *_ = sorted(first.parent.glob("*.gguf"))[1:]
    name = next(tensor.name for tensor in read_gguf(second).tensors if tensor.name.endswith("ffn_up.weight"))
    mutations.flip_bit(second, name, 5, 41, 3)
    ((kind, subject),) = found(compare(first, small))
    assert (kind, subject) == ("bit_flip", f"model.layers.{name.split('.')[1]}.mlp.up_proj.weight")
    third.unlink()
    result = compare(first, small)
    assert (found(result), third.name in result.findings[0].what) == ([("unreadable", first.name)], True)
    assert found(compare(second, small)) == [("unreadable", second.name)]


def test_a_tied_output_may_be_stored(tied: Path, make: Make, tmp_path: Path) -> None:
    artifact = Path(shutil.copy(make(tied, "BF16"), tmp_path))
    embedding = mutations.read_values(artifact, "token_embd.weight")
    mutations.rewrite(
        artifact, drop=["token_embd.weight"], add={"token_embd.weight": embedding, "output.weight": embedding}
    )
    result = compare(artifact, make(tied, "BF16"))
    assert (found(result), result.count("exact")) == ([], len(result.tensors))


YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 1024,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 1024,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
NAMES = [kind for kind in LIMITS if not kind.name.startswith(("IQ1", "IQ2"))]
"""All but those that need importance, or for which ggml computes tables for many seconds."""


def encoded(kind: BlockType, rows: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    blocks = np.empty((len(rows), kind.row_bytes(rows.shape[1])), np.uint8)
    ggml.quantize_rows(kind, rows, weights, blocks)
    return blocks


def decoded(kind: BlockType, blocks: np.ndarray, width: int) -> np.ndarray:
    values = np.empty((len(blocks), width), np.float32)
    ggml.dequantize_rows(kind, blocks, values)
    return values


def distributions() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    normal = random.standard_normal((12, 2048))
    outliers = np.where(random.random(2048) < 0.01, 20, 1)
    found = {
        "normal": normal,
        "heavy tails": random.standard_t(3, normal.shape),
        "outlier columns": normal * outliers,
        "sparse": np.where(random.random(normal.shape) < 0.5, 0, normal),
    }
    return {name: (0.02 * rows).astype(np.float32) for name, rows in found.items()}


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.name)
def test_what_ggml_writes_is_sound(kind: BlockType) -> None:
    """With importance and without; and the limits are no wider than they need to be."""
    random = np.random.default_rng(6)
    largest = 0.0
    for rows in distributions().values():
        for weights in (None, random.lognormal(sigma=1, size=2048).astype(np.float32)):
            values = decoded(kind, encoded(kind, rows, weights), 2048)
            sums = measure(values, rows)
            largest = max(largest, sums.relative_rmse)
            assert is_sound(kind, sums), sums
            shape = (-1, kind.block_weights)
            assert not damaged_blocks(kind, values.reshape(shape), rows.reshape(shape)).any()
    assert LIMITS[kind].relative_rmse < 3 * largest


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.name)
def test_blocks_of_zeros_or_of_other_weights_are_damaged(kind: BlockType) -> None:
    rows = distributions()["normal"]
    reference, shape = rows[0], (-1, kind.block_weights)
    zeros = np.zeros_like(reference)
    assert damaged_blocks(kind, zeros.reshape(shape), reference.reshape(shape)).all()
    other = decoded(kind, encoded(kind, rows[1:2], None), 2048)
    flags = damaged_blocks(kind, other.reshape(shape), reference.reshape(shape), codes=False)
    # The error of one bit a weight is nearly that of other weights.
    assert flags.mean() > (0.9 if LIMITS[kind].block < 1 or LIMITS[kind].cosine else 0.2)


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_most_flipped_bits_show_against_the_reference_alone(name: str) -> None:
    kind = BlockType[name]
    random = np.random.default_rng(7)
    rows = distributions()["heavy tails"]
    weights = random.lognormal(sigma=2, size=2048).astype(np.float32)
    blocks = encoded(kind, rows, weights).reshape(-1, kind.block_bytes)
    caught = 0
    for _ in range(20):
        damaged = blocks.copy()
        bits = random.integers(0, 8 * kind.block_bytes, len(blocks))
        damaged[np.arange(len(blocks)), bits // 8] ^= (1 << (bits % 8)).astype(np.uint8)
        values = decoded(kind, damaged.reshape(len(rows), -1), 2048).reshape(-1, 256)
        with np.errstate(all="ignore"):
            seen = damaged_blocks(kind, values, rows.reshape(-1, 256)) | ~np.isfinite(values).all(axis=1)
        caught += int(seen.sum())
    assert caught > 0.93 * 20 * len(blocks)


@pytest.mark.parametrize("kind", ["BF16", "Q4_K_M", "megatron"])
def test_memory_is_bounded_by_chunks(kind: str, small: Path, make: Make) -> None:
    """Beyond what opening takes, two threads hold less than the largest tensor has as float32: 33 MB."""
    artifact, reference = make(small, kind), open_checkpoint(small)[1]
    compare_weights(artifact, reference)  # compiles

    def peak(action: Callable[[], object]) -> int:
        tracemalloc.start()
        action()
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    opening = peak(lambda: pair_tensors(artifact, reference, None))
    assert peak(lambda: compare_weights(artifact, reference, threads=2)) - opening < 20 << 20


def test_the_command_prints_a_row_a_type_and_fails_on_findings(  # type: ignore[no-untyped-def]
    small: Path, make: Make, command, tmp_path: Path
) -> None:
    good, bad = make(small, "Q4_K_M"), Path(shutil.copy(make(small, "Q4_K_M"), tmp_path / "bad.gguf"))
    passed = command(cli, "weights", good, "--reference", small, "--threads", 1)
    assert passed.code == 0, passed.err
    lines = passed.out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["Q4_K", "Q6_K", "F32"]
    mutations.swap(bad, "blk.1.ffn_gate.weight", "blk.1.ffn_up.weight")
    failed = command(cli, "weights", good, bad, "--reference", small)
    assert failed.code == 1
    assert "swapped" in failed.out
    assert LAYER + "mlp.gate_proj.weight" in failed.err


def test_the_json_of_the_command(small: Path, make: Make, command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    good, cut = make(small, "BF16"), tmp_path / "cut.gguf"
    cut.write_bytes(good.read_bytes()[:-100000])
    result = command(cli, "weights", cut, good, "--reference", small, "--json")
    assert result.code == 1
    assert list(result.json) == ["schema_version", "results"]
    first, second = result.json["results"]
    assert [finding["kind"] for finding in first["findings"]] == ["unreadable"]
    assert list(second) == [
        "file", "reference", "exact", "quantized", "different", "missing", "extra", "tensors", "by_type", "by_kind",
        "by_layer", "seconds", "bytes", "findings",
    ]  # fmt: skip
    assert (second["file"], second["reference"]) == (str(good), str(small))
    assert (second["exact"], second["quantized"], second["different"]) == (len(second["tensors"]), 0, 0)
    assert list(second["tensors"][0]) == [
        "name", "gguf", "layer", "kind", "type", "reference_type", "shape", "status", "relative_rmse", "max_error",
        "cosine", "bytes",
    ]  # fmt: skip
    assert second["by_layer"][0]["layer"] is None


def test_threads_change_nothing(small: Path, make: Make) -> None:
    one, three = (compare(make(small, "Q4_K_M"), small, threads=threads) for threads in (1, 3))
    assert one.tensors == three.tensors


def test_what_cannot_be_compared_is_an_error(small: Path, make: Make, command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    good = make(small, "BF16")
    assert command(cli, "weights", tmp_path / "absent.gguf", "--reference", small).code == 4
    assert command(cli, "weights", good, "--reference", tmp_path / "absent").code == 3
    assert command(cli, "weights", good, "--reference", small, "--hf-config", small).code == 2
    torn = shutil.copytree(small, tmp_path / "torn")
    mutations.change_tensors(torn, lambda tensors: tensors.pop("lm_head.weight"))
    result = command(cli, "weights", good, "--reference", torn)
    assert (result.code, "lm_head.weight" in result.err) == (3, True)
    odd = write_legacy_imatrix(tmp_path / "odd.dat", {"blk.0.ffn_up.weight": np.ones(17, np.float32)})
    result = command(cli, "weights", make(small, "Q4_K_M"), "--reference", small, "--imatrix", odd)
    assert (result.code, "odd.dat" in result.err) == (3, True)


def test_a_reference_that_is_not_finite_is_told(small: Path, make: Make, tmp_path: Path) -> None:
    spoiled = shutil.copytree(small, tmp_path / "folder")
    mutations.change_tensors(spoiled, spoil)
    for kind in ("BF16", "Q4_K_M"):
        ((_, subject),) = found(compare(make(small, kind), spoiled))
        assert subject == LAYER + "mlp.down_proj.weight"


@pytest.mark.parametrize("rope", [YARN, LLAMA3])
def test_scaled_rotary_embeddings_survive_gguf(rope: dict, small: Path, make: Make, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / rope["rope_type"])
    edit_config(folder, rope_parameters=rope)
    artifact = make(folder, "BF16")
    assert found(compare(artifact, folder)) == []
    edit_config(folder, rope_parameters={**rope, "factor": 2.0})
    assert found(compare(artifact, folder)) == [("hyperparameter", "rope.factor")]
    assert {subject for _, subject in found(compare(artifact, small))} == {"rope.type"}


def test_blocks_that_are_other_and_sound_are_no_damage(small: Path, make: Make, tmp_path: Path) -> None:
    """As between builds of ggml for different processors: a few codes are others, each as good."""
    artifact = Path(shutil.copy(make(small, "Q4_K_M"), tmp_path))
    tensor = open_checkpoint(small)[1].tensors[LAYER + "mlp.up_proj.weight"]
    rows = (tensor.read(0, 4).astype(np.uint32) << 16).view(np.float32)
    weights = np.random.default_rng(8).lognormal(sigma=1, size=256).astype(np.float32)
    stored = mutations.stored_rows(artifact, "blk.1.ffn_up.weight")
    other = encoded(BlockType.Q4_K, rows, weights)
    assert (stored[:4] != other).any(axis=1).all()
    stored[:4] = other
    result = compare(artifact, small)
    assert (found(result), result.count("quantized")) == ([], 1)
