"""mval weights: each mistake is named for what it is, in a GGUF file, among experts and in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mconv.convert.containers.gguf import read_gguf
from mconv.convert.model.metadata import float32, uint32
from mconv.convert.tensors.orders import RotaryInterleaved, index_of

from support import mutations
from support.weight_checks import EXPERT, LAYER, Make, Mutation, compare, edit_config, found, spoil

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
    tensors[name] = tensors[name][index_of(RotaryInterleaved(2, 64))]


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
