"""llama-quantize itself, through llama.cpp's C interface: what the tests of `quantize` are held against."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGUFWriter

from mconv.convert.layouts.gguf.names import role_of
from mconv.convert.tensors.block_types import BlockType
from mconv.quantize.assign import SourceTensor
from mconv.quantize.filetypes import FileType
from mconv.quantize.mixture import ModelFacts


@dataclass(frozen=True)
class Options:
    """The options of llama-quantize that change types or bytes."""

    imatrix: Mapping[str, np.ndarray] | None = None
    overrides: Sequence[tuple[str, BlockType]] = ()
    output_tensor_type: BlockType | None = None
    token_embedding_type: BlockType | None = None
    pure: bool = False


def model_tensors(
    model: ModelFacts, width: int = 256, ffn_width: int = 256, rows: int = 2, tied: bool = False, fused: bool = False
) -> list[SourceTensor]:
    """Every tensor of a llama-like model. llama-quantize looks at row lengths only, so few rows will do."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (rows, width), "output_norm.weight": (width,)}
    if not tied:
        shapes["output.weight"] = (rows, width)
    stack = (model.experts,) if model.experts else ()
    suffix = "_exps" if model.experts else ""
    for layer in range(model.layers):
        names = ["attn_qkv", "attn_output"] if fused else ["attn_q", "attn_k", "attn_v", "attn_output"]
        block: dict[str, tuple[int, ...]] = {f"{name}.weight": (rows, width) for name in names}
        block |= {f"{name}.weight": (width,) for name in ("attn_norm", "ffn_norm")}
        block |= {f"ffn_{name}{suffix}.weight": (*stack, rows, width) for name in ("up", "gate")}
        block[f"ffn_down{suffix}.weight"] = (*stack, rows, ffn_width)
        if model.experts:
            block["ffn_gate_inp.weight"] = (model.experts, width)
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return [SourceTensor(name, shape, BlockType.F32, role_of(name)) for name, shape in shapes.items()]


def write_model(path: Path, model: ModelFacts, values: Mapping[str, np.ndarray]) -> None:
    """A GGUF file that llama-quantize takes: hyperparameters and float32 tensors, no vocabulary."""
    writer = GGUFWriter(path, model.architecture)
    writer.add_block_count(model.layers)
    writer.add_context_length(512)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(2)
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(2)
    for name, array in values.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def zeros(tensors: Sequence[SourceTensor]) -> dict[str, np.ndarray]:
    """Values for tests that look at types alone."""
    return {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in tensors}


def planned_types(path: Path, file_type: FileType, options: Options) -> dict[str, str] | None:
    """The type of every tensor, by llama-quantize's dry run; None where it refuses."""
    with _captured_log() as log:
        status = _quantize(path, path, file_type, options, dry_run=True)
    if status != 0:
        return None
    lines = re.findall(r"\] (\S+) +- \[[^]]*\], type = +(\w+), (.*)", "".join(log))
    return {name: _last_word_in_brackets(rest) or kept for name, kept, rest in lines}


def quantize(source: Path, target: Path, file_type: FileType, options: Options) -> None:
    """Write the file that llama-quantize writes."""
    with _captured_log() as log:
        status = _quantize(source, target, file_type, options, dry_run=False)
    if status != 0:
        raise RuntimeError("".join(log)[-1000:])


def _last_word_in_brackets(text: str) -> str | None:
    found = re.search(r"\((\w+)\)\s*$", text)
    return found[1] if found else None


@contextmanager
def _captured_log() -> Iterator[list[str]]:
    parts: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(_level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
        parts.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    try:
        yield parts
    finally:
        from llama_cpp._logger import llama_log_callback

        llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


def _quantize(source: Path, target: Path, file_type: FileType, options: Options, dry_run: bool) -> int:
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure, params.dry_run = 1, file_type.number, options.pure, dry_run
    if options.output_tensor_type:
        params.output_tensor_type = options.output_tensor_type.number
    if options.token_embedding_type:
        params.token_embedding_type = options.token_embedding_type.number
    if options.overrides:
        override = llama_cpp.llama_model_tensor_override
        entries = [override(pattern.encode(), block_type.number) for pattern, block_type in options.overrides]
        params.tt_overrides = (override * (len(entries) + 1))(*entries, override(None, 0))
    if options.imatrix is not None:
        data = llama_cpp.llama_model_imatrix_data
        pointer = ctypes.POINTER(ctypes.c_float)
        rows = [data(name.encode(), v.ctypes.data_as(pointer), v.size) for name, v in options.imatrix.items()]
        params.imatrix = (data * (len(rows) + 1))(*rows, data(None, None, 0))
    return llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
