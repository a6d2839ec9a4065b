"""A child process that tests AMX: it runs a tiny quantized model in the way llama.cpp would run a real one.

amx.py runs it as a script, without importing the package: it needs only llama_cpp and gguf.
"""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

WIDTH = 256  # one super-block of the K types, and a multiple of every AMX tile
VOCABULARY = 256
TYPES = (gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K, gguf.GGMLQuantizationType.Q8_0)
LAYER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
MATRICES = ("token_embd", "output", *(f"blk.0.{name}" for name in LAYER))


def write_model(path: Path, weight_type: gguf.GGMLQuantizationType) -> None:
    """Write a one-layer Llama without a vocabulary; all weights are zero, since tiles fault with any values."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    block, size = gguf.GGML_QUANT_SIZES[weight_type]
    row_bytes = WIDTH // block * size
    for name in MATRICES:
        writer.add_tensor(f"{name}.weight", np.zeros((WIDTH, row_bytes), np.uint8), raw_dtype=weight_type)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def decode(path: Path) -> None:
    """Run a prompt of several tokens and then one token, the two shapes of product in llama.cpp."""
    model_params = llama_cpp.llama_model_default_params()
    model_params.use_extra_bufts = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    context_params = llama_cpp.llama_context_default_params()
    context_params.n_ctx = 64
    context = llama_cpp.llama_init_from_model(model, context_params)
    for count in (32, 1):
        tokens = (llama_cpp.llama_token * count)()
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, count)):
            raise SystemExit(1)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


@llama_cpp.llama_log_callback
def _silence(_level: int, _text: bytes, _user_data: ctypes.c_void_p) -> None:
    pass


if __name__ == "__main__":
    llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as folder:
        for weight_type in TYPES:
            file = Path(folder, f"{weight_type.name}.gguf")
            write_model(file, weight_type)
            decode(file)
