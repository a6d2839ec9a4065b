"""A Mistral of any depth with random bfloat16 weights, written tensor by tensor: FOLDER LAYERS."""

from __future__ import annotations

import json
import math
import shutil
import struct
import sys
from pathlib import Path

import mistral_common
import numpy as np

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2048, 5632, 32, 8, 128, 32000

CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def count_weights(layers: int) -> int:
    """Weights of a model of this depth; 18 layers have 1.13 billion."""
    return sum(math.prod(shape) for shape in _shapes(layers).values())


def write_checkpoint(folder: Path, layers: int) -> None:
    """Write the checkpoint, unless it is there already."""
    if (folder / "config.json").exists():
        return
    shapes = _shapes(layers)
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(_header(shapes))
        for shape in shapes.values():
            values = np.ones(shape, np.float32) if len(shape) == 1 else _normal(random, shape)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    shutil.copy(Path(mistral_common.__file__).parent / "data/tokenizer.model.v1", folder / "tokenizer.model")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))


def _shapes(layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(layers):
        block = {
            "input_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
            "post_attention_layernorm": (HIDDEN,),
            "mlp.gate_proj": (FFN, HIDDEN),
            "mlp.up_proj": (FFN, HIDDEN),
            "mlp.down_proj": (HIDDEN, FFN),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    return {**shapes, "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}


def _header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    entries, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.standard_normal(math.prod(shape), dtype=np.float32) * np.float32(0.02)


if __name__ == "__main__":
    write_checkpoint(Path(sys.argv[1]), int(sys.argv[2]))
