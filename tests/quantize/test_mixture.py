"""The type of every tensor, held against llama-quantize's own dry run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mconv.convert.errors import QuantizationError, UsageError
from mconv.convert.tensors.block_types import BlockType, find_block_type
from mconv.quantize.assign import (
    Assignment,
    Reason,
    SourceTensor,
    TypeOptions,
    assign_types,
    check_importance,
    quantize_order,
)
from mconv.quantize.filetypes import FileType, find_file_type
from mconv.quantize.imatrix import ImportanceMatrix
from mconv.quantize.mixture import ModelFacts
from mconv.quantize.overrides import parse_override

from support.llama_quantize import Options, model_tensors, planned_types, write_model, zeros

SOME_IMPORTANCE = {"blk.0.attn_q.weight": np.ones(256, np.float32)}


@dataclass(frozen=True)
class Case:
    """A model shape that some rule looks at."""

    model: ModelFacts
    tensors: list[SourceTensor]


def case(model: ModelFacts, **shape: Any) -> Case:
    return Case(model, model_tensors(model, **shape))


CASES = {
    "dense": case(ModelFacts("llama", 32, 4, 4)),
    "few layers": case(ModelFacts("llama", 5, 4, 4)),
    "shared heads": case(ModelFacts("mistral3", 40, 32, 8)),
    "two heads share": case(ModelFacts("llama", 26, 8, 4)),
    "tied": case(ModelFacts("mistral3", 34, 4, 4), tied=True),
    "fused attention": case(ModelFacts("llama", 12, 4, 4), fused=True),
    "eight experts": case(ModelFacts("llama", 32, 32, 8, 8)),
    "eight experts, no shared heads": case(ModelFacts("llama", 9, 4, 4, 8)),
    "sixteen experts": case(ModelFacts("llama", 24, 4, 4, 16)),
    "four experts": case(ModelFacts("llama", 8, 4, 4, 4)),
    "two experts": case(ModelFacts("llama", 16, 4, 4, 2)),
    "70B": case(ModelFacts("llama", 80, 64, 8)),
    "65B": case(ModelFacts("llama", 80, 64, 64)),
    "80 layers of mistral3": case(ModelFacts("mistral3", 80, 64, 8)),
    "rows of 288": case(ModelFacts("llama", 10, 6, 2), width=288),
    "rows of 96, tied": case(ModelFacts("llama", 8, 4, 4), width=96, tied=True),
    "rows of 80": case(ModelFacts("llama", 8, 4, 4), width=80, ffn_width=64),
    "down rows of 128": case(ModelFacts("llama", 16, 4, 4, 8), ffn_width=128),
}


def our_types(case: Case, file_type: FileType, options: TypeOptions, has_imatrix: bool) -> dict[str, str] | None:
    """Types as llama.cpp spells them, or None where we refuse."""
    try:
        assignments = assign_types(case.tensors, case.model, file_type, options, has_imatrix)
    except QuantizationError:
        return None
    return {name: a.type.name.lower().replace("_k", "_K") for name, a in assignments.items()}


@pytest.fixture(scope="module", params=CASES)
def written_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    chosen = CASES[request.param]
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    write_model(path, chosen.model, zeros(chosen.tensors))
    return chosen, path


@pytest.mark.parametrize("has_imatrix", [False, True])
def test_types_are_those_of_llama_quantize(written_case: tuple[Case, Path], has_imatrix: bool) -> None:
    chosen, path = written_case
    theirs_options = Options(imatrix=SOME_IMPORTANCE if has_imatrix else None)
    for file_type in FileType:
        theirs = planned_types(path, file_type, theirs_options)
        assert our_types(chosen, file_type, TypeOptions(), has_imatrix) == theirs, file_type


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (Options(pure=True), TypeOptions(pure=True)),
        (Options(output_tensor_type=BlockType.Q8_0), TypeOptions(output_tensor_type=BlockType.Q8_0)),
        (Options(token_embedding_type=BlockType.F16), TypeOptions(token_embedding_type=BlockType.F16)),
        (
            Options(output_tensor_type=BlockType.BF16, token_embedding_type=BlockType.Q5_1, pure=True),
            TypeOptions(output_tensor_type=BlockType.BF16, token_embedding_type=BlockType.Q5_1, pure=True),
        ),
        (
            Options(overrides=[("attn_[qk]", BlockType.Q3_K), ("ffn_(up|gate)", BlockType.Q6_K), ("q", BlockType.F16)]),
            TypeOptions(tuple(map(parse_override, ("ATTN_[QK]=q3_k", "ffn_(up|gate)=Q6_K", "q=f16")))),
        ),
        (
            Options(overrides=[("token_embd", BlockType.Q2_K)], output_tensor_type=BlockType.Q4_0),
            TypeOptions((parse_override("token_embd=q2_k"),), output_tensor_type=BlockType.Q4_0),
        ),
    ],
)
def test_options_mean_what_they_mean_to_llama_quantize(
    written_case: tuple[Case, Path], theirs: Options, ours: TypeOptions
) -> None:
    chosen, path = written_case
    file_types = (FileType.Q4_K_M, FileType.IQ3_XS, FileType.Q8_0, FileType.BF16)
    if any(not can_take(chosen, t) for t in (ours.output_tensor_type, ours.token_embedding_type) if t):
        # llama-quantize aborts on a type that was asked for and does not fit.
        for file_type in file_types:
            with pytest.raises(QuantizationError, match=r"weight cannot be \w+: its rows of"):
                assign_types(chosen.tensors, chosen.model, file_type, ours)
        return
    for file_type in file_types:
        assert our_types(chosen, file_type, ours, False) == planned_types(path, file_type, theirs), file_type


def can_take(chosen: Case, block_type: BlockType) -> bool:
    named = ("token_embd.weight", "output.weight")
    return all(block_type.fits(tensor.row_weights) for tensor in chosen.tensors if tensor.name in named)


@pytest.mark.parametrize("part", ["attn_v", "ffn_down"])
def test_an_override_shifts_no_other_layer(tmp_path: Path, part: str) -> None:
    dense = CASES["dense"]
    path = tmp_path / "model.gguf"
    write_model(path, dense.model, zeros(dense.tensors))
    pattern = rf"blk\.0\.{part}"
    theirs = planned_types(path, FileType.Q4_K_M, Options(overrides=[(pattern, BlockType.Q8_0)]))
    ours = our_types(dense, FileType.Q4_K_M, TypeOptions((parse_override(f"{pattern}=q8_0"),)), False)
    usual = our_types(dense, FileType.Q4_K_M, TypeOptions(), False)
    assert theirs is not None and ours is not None and usual is not None

    def layers_with_more_bits(types: dict[str, str]) -> list[int]:
        return [layer for layer in range(32) if types[f"blk.{layer}.{part}.weight"] == "q6_K"]

    assert layers_with_more_bits(usual) == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert layers_with_more_bits(ours) == layers_with_more_bits(usual)[1:]
    shifted = [1, 2, 3, 4, 7, 10, 13, 16, 19, 22, 25, 28, 29, 30, 31]
    assert layers_with_more_bits(theirs) == shifted, "llama-quantize has mended its counters: drop the difference"
    assert {name for name in usual if usual[name] != ours[name]} == {f"blk.0.{part}.weight"}


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("attn_qq=q8_0", "'attn_qq' matches no tensor", "attn_q.weight"),
        (r"blk\.99\.ffn_down=q8_0", "matches no tensor", "ffn_down"),
        ("attn_norm=q8_0", "never quantized, such as blk.0.attn_norm.weight", "weight matrix"),
        ("attn_q=q4_k_m", "unknown tensor type 'q4_k_m'", "Q4_K"),
        ("attn_(q=q8_0", "is not a regular expression", "backslash"),
        ("attn_q", "is not REGEX=TYPE", "attn_v=q8_0"),
        ("=q8_0", "is not REGEX=TYPE", "attn_v=q8_0"),
    ],
)
def test_a_useless_override_is_an_error(text: str, what: str, hint: str) -> None:
    dense = CASES["few layers"]
    with pytest.raises(UsageError) as caught:
        assign_types(dense.tensors, dense.model, FileType.Q4_K_M, TypeOptions((parse_override(text),)))
    assert what in caught.value.what
    assert hint in caught.value.hint


def test_what_was_asked_for_by_name_is_never_replaced() -> None:
    odd = CASES["rows of 288"]
    with pytest.raises(QuantizationError, match=r"output\.weight cannot be Q6_K: its rows of 288 weights"):
        assign_types(odd.tensors, odd.model, FileType.Q4_K_M, TypeOptions(output_tensor_type=BlockType.Q6_K))


def test_a_type_without_stand_in_is_an_error() -> None:
    odd = CASES["rows of 288"]
    with pytest.raises(QuantizationError, match=r"token_embd\.weight cannot be Q1_0"):
        assign_types(odd.tensors, odd.model, FileType.Q1_0)


def test_fallbacks_say_what_was_wanted() -> None:
    odd = CASES["rows of 80"]
    found = assign_types(odd.tensors, odd.model, FileType.Q4_K_M)
    query, down = found["blk.0.attn_q.weight"], found["blk.0.ffn_down.weight"]
    assert (query.type, query.wanted, query.is_fallback) == (BlockType.F16, BlockType.Q4_K, True)
    assert (down.type, down.wanted, down.is_fallback) == (BlockType.Q8_0, BlockType.Q6_K, True)
    norm = found["output_norm.weight"]
    assert (norm.type, norm.reason, norm.is_fallback) == (BlockType.F32, Reason.KEPT, False)


def test_an_override_is_told_apart() -> None:
    dense = CASES["few layers"]
    found = assign_types(dense.tensors, dense.model, FileType.Q4_K_M, TypeOptions((parse_override("attn_q=q5_k"),)))
    assert found["blk.3.attn_q.weight"].reason is Reason.OVERRIDE
    assert found["blk.3.attn_k.weight"].reason is Reason.MIXTURE


def test_order_is_by_layer_then_name() -> None:
    names = ["blk.10.a", "blk.2.b", "token_embd.weight", "blk.2.a", "output.weight", "blk.0.z"]
    assert quantize_order(names) == [
        "output.weight", "token_embd.weight", "blk.0.z", "blk.2.a", "blk.2.b", "blk.10.a",
    ]  # fmt: skip


def test_importance_that_would_help_is_named() -> None:
    dense = CASES["few layers"]
    found = assign_types(dense.tensors, dense.model, FileType.Q4_K_M, has_imatrix=True)
    every = {t.name: np.ones(256, np.float32) for t in dense.tensors}
    del every["blk.1.attn_v.weight"], every["token_embd.weight"]
    matrix = ImportanceMatrix("imatrix.gguf", every)
    assert check_importance(found.values(), matrix) == ["token_embd.weight", "blk.1.attn_v.weight"]
    assert check_importance(found.values(), None) == []


def test_importance_that_is_needed_is_an_error() -> None:
    dense = CASES["few layers"]
    found = assign_types(dense.tensors, dense.model, FileType.IQ2_XS)
    with pytest.raises(QuantizationError, match=r"blk\.0\.attn_k\.weight is useless as IQ2_XS") as caught:
        check_importance(found.values(), None)
    assert "--imatrix" in caught.value.hint
    with pytest.raises(QuantizationError, match=r"blk\.0\.attn_k\.weight") as caught:
        check_importance(found.values(), ImportanceMatrix("other.gguf", {}))
    assert "other.gguf" in caught.value.hint


def test_block_types_are_those_of_gguf() -> None:
    sizes = {t.name: (t.value, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
    # gguf-py does not know this one yet; tests/test_ggml.py holds every type against ggml itself.
    known = [t for t in BlockType if t is not BlockType.Q2_0]
    assert {t.name: (t.number, t.block_weights, t.block_bytes) for t in known} == {t.name: sizes[t.name] for t in known}


def test_file_types_are_those_of_llama_cpp() -> None:
    numbers = {t.name.removeprefix("MOSTLY_").removeprefix("ALL_"): t.value for t in gguf.LlamaFileType}
    known = [t for t in FileType if t is not FileType.Q2_0]
    assert {t.name: t.number for t in known} == {t.name: numbers[t.name] for t in known}


def test_names_are_found_in_any_case() -> None:
    assert find_file_type("q4_k_m") is FileType.Q4_K_M
    assert find_file_type("Q5_k") is FileType.Q5_K_M
    assert find_block_type("iq4_nl") is BlockType.IQ4_NL
    with pytest.raises(UsageError, match="unknown file type 'Q4_K_X'") as caught:
        find_file_type("Q4_K_X")
    assert "Q4_K_M" in caught.value.hint
    with pytest.raises(UsageError, match="unknown tensor type 'zzz'") as caught:
        find_block_type("zzz")
    assert "Q8_0" in caught.value.hint


def test_a_row_is_whole_blocks() -> None:
    assert BlockType.Q4_K.row_bytes(5120) == 2880
    assert BlockType.BF16.row_bytes(7) == 14
    with pytest.raises(QuantizationError, match="a row of 288 weights cannot be divided into blocks of 256"):
        BlockType.Q4_K.row_bytes(288)


def real_tensors(model: ModelFacts, hidden: int, ffn: int, vocab: int, head_dim: int = 128) -> list[SourceTensor]:
    query, key = model.heads * head_dim, model.kv_heads * head_dim
    rows = {"attn_q": query, "attn_k": key, "attn_v": key, "attn_output": hidden, "ffn_down": hidden}
    tensors = []
    for tensor in model_tensors(model, hidden, ffn):
        part = tensor.name.removesuffix(".weight").removesuffix("_exps").split(".")[-1]
        shape = tensor.shape
        if part in ("token_embd", "output", *rows, "ffn_up", "ffn_gate"):
            columns = {"attn_output": query, "ffn_down": ffn}.get(part, hidden)
            height = rows.get(part, ffn if part.startswith("ffn") else vocab)
            shape = (*shape[:-2], height, columns)
        tensors.append(replace(tensor, shape=shape))
    return tensors


def gigabytes(assignments: dict[str, Assignment]) -> float:
    return (
        sum(math.prod(a.tensor.shape[:-1]) * a.type.row_bytes(a.tensor.row_weights) for a in assignments.values()) / 1e9
    )


MISTRAL_7B = ModelFacts("llama", 32, 32, 8)
MIXTRAL_8X7B = ModelFacts("llama", 32, 32, 8, 8)
MISTRAL_SMALL = ModelFacts("llama", 40, 32, 8)


@pytest.mark.parametrize(
    ("model", "tensors", "expected"),
    [
        (MISTRAL_7B, real_tensors(MISTRAL_7B, 4096, 14336, 32768), [4.372, 5.135, 5.946, 3.911]),
        (MIXTRAL_8X7B, real_tensors(MIXTRAL_8X7B, 4096, 14336, 32000), [28.448, 33.229, 38.380, 25.080]),
        (MISTRAL_SMALL, real_tensors(MISTRAL_SMALL, 5120, 32768, 131072), [14.326, 16.756, 19.338, 12.751]),
    ],
    ids=["Mistral 7B v0.3", "Mixtral 8x7B", "Mistral Small 24B"],
)
def test_real_models_have_their_known_sizes(
    model: ModelFacts, tensors: list[SourceTensor], expected: list[float]
) -> None:
    types = (FileType.Q4_K_M, FileType.Q5_K_M, FileType.Q6_K, FileType.IQ4_XS)
    found = [gigabytes(assign_types(tensors, model, t, has_imatrix=t is FileType.IQ4_XS)) for t in types]
    assert [round(size, 3) for size in found] == expected
