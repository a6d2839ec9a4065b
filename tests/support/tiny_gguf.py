"""Tiny GGUF files that llama.cpp runs: a vocabulary of bytes, and weights that are noise or that follow a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

UNKNOWN, BOS, EOS = 0, 1, 2
CONTROL = ("[INST]", "[/INST]", "[THINK]", "[/THINK]")
FIRST_BYTE = 3
VOCAB = FIRST_BYTE + 256 + len(CONTROL)
HIDDEN, HEADS, KV_HEADS, FFN, CONTEXT = 512, 4, 2, 512, 1024


def byte(character: str) -> int:
    """The token of an ASCII character."""
    return FIRST_BYTE + ord(character)


def control(spelling: str) -> int:
    """The token of one of `CONTROL`."""
    return FIRST_BYTE + 256 + CONTROL.index(spelling)


def write_noise(
    path: Path, *, quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32, layers: int = 2
) -> Path:
    """A model of random weights, the same in every call up to the rounding of their type."""
    random = np.random.default_rng(7)
    shapes = {"token_embd": (VOCAB, HIDDEN), "output": (VOCAB, HIDDEN)}
    head = HIDDEN // HEADS
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_q": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k": (KV_HEADS * head, HIDDEN),
            f"blk.{layer}.attn_v": (KV_HEADS * head, HIDDEN),
            f"blk.{layer}.attn_output": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_gate": (FFN, HIDDEN),
            f"blk.{layer}.ffn_up": (FFN, HIDDEN),
            f"blk.{layer}.ffn_down": (HIDDEN, FFN),
        }
    weights = {name: random.normal(0, 0.08, shape).astype(np.float32) for name, shape in shapes.items()}
    return _write(path, weights, layers, quantization, None, True, {})


def write_script(
    path: Path,
    successors: Mapping[int, int],
    template: str | None = None,
    *,
    adds_bos: bool = True,
    metadata: Mapping[str, float] | None = None,
) -> Path:
    """A model that follows each token by the one that `successors` names, and any other token by EOS.

    The layer adds nothing, and a token's embedding is one of the axes: the output matrix is the script itself.
    """
    embedding = np.eye(VOCAB, HIDDEN, dtype=np.float32)
    output = np.zeros_like(embedding)
    for token in range(VOCAB):
        output[successors.get(token, EOS), token] = 1
    zero = np.zeros((HIDDEN, HIDDEN), np.float32)
    keys = np.zeros((KV_HEADS * HIDDEN // HEADS, HIDDEN), np.float32)
    weights = {"token_embd": embedding, "output": output}
    weights |= {"blk.0.attn_q": zero, "blk.0.attn_k": keys, "blk.0.attn_v": keys, "blk.0.attn_output": zero}
    weights |= {f"blk.0.{name}": np.zeros((FFN, HIDDEN), np.float32) for name in ("ffn_gate", "ffn_up")}
    weights["blk.0.ffn_down"] = np.zeros((HIDDEN, FFN), np.float32)
    return _write(path, weights, 1, gguf.GGMLQuantizationType.F32, template, adds_bos, metadata or {})


def _write(
    path: Path,
    weights: Mapping[str, np.ndarray],
    layers: int,
    quantization: gguf.GGMLQuantizationType,
    template: str | None,
    adds_bos: bool,
    metadata: Mapping[str, float],
) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(layers)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCAB)
    _add_vocabulary(writer, adds_bos)
    for key, value in metadata.items():
        if isinstance(value, int):
            writer.add_int32(key, value)
        else:
            writer.add_float32(key, value)
    if template is not None:
        writer.add_chat_template(template)
    for name, values in weights.items():
        data = gguf.quants.quantize(values, quantization)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=quantization)
    norms = [f"blk.{layer}.{norm}" for layer in range(layers) for norm in ("attn_norm", "ffn_norm")]
    for name in ("output_norm", *norms):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, adds_bos: bool) -> None:
    kinds = gguf.TokenType
    tokens: Sequence[str] = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), *CONTROL]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, *[kinds.CONTROL] * len(CONTROL)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(adds_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
