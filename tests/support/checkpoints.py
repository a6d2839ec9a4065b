"""Small checkpoints as transformers saves them, with random weights and real tokenizers, the same on every machine."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.checkpoints_tokenizers import packaged
from support.paths import TINY_MISTRAL
from support.random_weights import random_weights, rounded, write_safetensors

Shapes = dict[str, tuple[int, ...]]

SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2048,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
"""heads * head_dim is 512, twice hidden, as Mistral Small's differ; rows are whole K-quant super-blocks."""

LARGE = 32000
"""The vocabulary of Mistral's first models, which takes most of the time of whatever reads it."""

VISION: dict[str, Any] = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}

TEMPLATE = "{{ bos_token }}{% for message in messages %}[INST] {{ message.content }} [/INST]{% endfor %}"

TRANSFORMERS = "5.23.0"
"""The release whose files these are."""

# What transformers adds to every configuration of a text model.
_TEXT = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "use_cache": True,
}
_YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 16.0,
    "llama_4_scaling_beta": 0.1,
    "max_position_embeddings": 262144,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16384,
    "rope_theta": 1e6,
    "rope_type": "yarn",
    "type": "yarn",
}


def mistral(folder: Path, *, dtype: str = "bfloat16", max_shard_size: int | None = None, **shape: Any) -> Path:
    """A dense Mistral."""
    config = _config("mistral", 1e6, **{"sliding_window": None, **shape})
    return _write(folder, config, _text_shapes(config), dtype, max_shard_size)


def mixtral(folder: Path, *, dtype: str = "bfloat16", max_shard_size: int | None = None, **shape: Any) -> Path:
    """A mixture of eight experts."""
    config = _config(
        "mixtral",
        1e6,
        **{
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
            "num_hidden_layers": 4,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
            "router_jitter_noise": 0.0,
            "sliding_window": None,
            **shape,
        },
    )
    return _write(folder, config, _text_shapes(config), dtype, max_shard_size)


def llama(folder: Path, *, dtype: str = "bfloat16", max_shard_size: int | None = None, **shape: Any) -> Path:
    """A plain Llama."""
    config = _config("llama", 1e4, **{"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, **shape})
    return _write(folder, config, _text_shapes(config), dtype, max_shard_size)


def mistral3(folder: Path) -> Path:
    """Mistral Small 3.1 in small."""
    text = _config("mistral", 1e4, sliding_window=None, num_hidden_layers=3, vocab_size=LARGE)
    return _write(folder, _with_vision(text, tied=False), _vision_shapes(text, tied=False))


def ministral3(folder: Path) -> Path:
    """Ministral 3 in small, with the tokenizer as Mistral ships it."""
    text = _config(
        "ministral3",
        rope_parameters=_YARN,
        vocab_size=131072,
        num_hidden_layers=2,
        max_position_embeddings=262144,
        sliding_window=None,
        pad_token_id=11,
    )
    return _write(folder, _with_vision(text, tied=True), _vision_shapes(text, tied=True))


def save(folder: Path, config: Any, *, dtype: str = "bfloat16", model_class: Any = None) -> Path:
    """A checkpoint of any class of transformers, which saves it; for a family that has no function above.

    Args:
        config: a configuration of transformers.
        model_class: what makes the model, AutoModelForCausalLM unless told.
    """
    import torch
    import transformers

    model = (model_class or transformers.AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weights = random_weights(name, tuple(parameter.shape), varied="vision" not in name)
            parameter.copy_(torch.from_numpy(weights))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    add_tokenizer(folder, config.get_text_config().vocab_size)
    return folder


def add_tokenizer(folder: Path, vocab_size: int) -> None:
    """Put a tokenizer into a checkpoint: of 131072 tokens Mistral's Tekken, of 2048 the bundled example's.

    Any other number of tokens is that of Mistral's first SentencePiece file, with padding.
    """
    if vocab_size == 131072:
        shutil.copy(packaged("tekken_240911.json"), folder / "tekken.json")
        return
    is_small = vocab_size == SHAPE["vocab_size"]
    shutil.copy(
        TINY_MISTRAL / "tokenizer.model" if is_small else packaged("tokenizer.model.v1"), folder / "tokenizer.model"
    )
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    _write_json(folder / "tokenizer_config.json", {**settings, "add_bos_token": True, "add_eos_token": False})


def _config(model_type: str, rope_theta: float = 1e4, **shape: Any) -> dict[str, Any]:
    """The configuration of a text model, all of it."""
    rope = {"rope_theta": rope_theta, "rope_type": "default"}
    return {**SHAPE, **_TEXT, "model_type": model_type, "rope_parameters": rope, **shape}


def _with_vision(text: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    vision = {
        **VISION,
        "attention_dropout": 0.0,
        "head_dim": VISION["hidden_size"] // VISION["num_attention_heads"],
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "num_channels": 3,
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "axial"},
    }
    return {
        "image_token_index": 10,
        "model_type": "mistral3",
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "text_config": {**text, "tie_word_embeddings": False},
        "tie_word_embeddings": tied,
        "vision_config": vision,
        "vision_feature_layer": -1,
    }


def _text_shapes(config: Mapping[str, Any], tied: bool | None = None) -> Shapes:
    """Every tensor of a text model, in the order of the model."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    query, key = (config[part] * config["head_dim"] for part in ("num_attention_heads", "num_key_value_heads"))
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        matrices = {"q": (query, hidden), "k": (key, hidden), "v": (key, hidden), "o": (hidden, query)}
        for name, shape in matrices.items():
            shapes[f"{block}self_attn.{name}_proj.weight"] = shape
            if config.get("attention_bias"):
                shapes[f"{block}self_attn.{name}_proj.bias"] = shape[:1]
        if experts := config.get("num_local_experts"):
            shapes[f"{block}block_sparse_moe.gate.weight"] = (experts, hidden)
            for expert in range(experts):
                for name, shape in {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}.items():
                    shapes[f"{block}block_sparse_moe.experts.{expert}.{name}.weight"] = shape
        else:
            for name, shape in {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}.items():
                shapes[f"{block}mlp.{name}_proj.weight"] = shape
                if config.get("mlp_bias"):
                    shapes[f"{block}mlp.{name}_proj.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}{name}.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not (config["tie_word_embeddings"] if tied is None else tied):
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _vision_shapes(text: Mapping[str, Any], *, tied: bool) -> Shapes:
    """Every tensor of a text model with a vision tower of `VISION` beside it."""
    hidden, inner, deep, patch = text["hidden_size"], VISION["intermediate_size"], VISION["hidden_size"], 16
    layer = "vision_tower.transformer.layers.0."
    shapes: Shapes = {f"language_model.{name}": shape for name, shape in _text_shapes(text, tied).items()}
    shapes |= {
        "multi_modal_projector.linear_1.weight": (hidden, deep),
        "multi_modal_projector.linear_2.weight": (hidden, hidden),
        "multi_modal_projector.norm.weight": (deep,),
        "multi_modal_projector.patch_merger.merging_layer.weight": (deep, 4 * deep),
        "vision_tower.ln_pre.weight": (deep,),
        "vision_tower.patch_conv.weight": (deep, 3, patch, patch),
        f"{layer}attention_norm.weight": (deep,),
        f"{layer}ffn_norm.weight": (deep,),
        f"{layer}feed_forward.down_proj.weight": (deep, inner),
        f"{layer}feed_forward.gate_proj.weight": (inner, deep),
        f"{layer}feed_forward.up_proj.weight": (inner, deep),
    }
    return shapes | {f"{layer}attention.{name}_proj.weight": (deep, deep) for name in "kqvo"}


_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "mistral3": "Mistral3ForConditionalGeneration",
}


def _write(
    folder: Path,
    config: Mapping[str, Any],
    shapes: Shapes,
    dtype: str = "bfloat16",
    max_shard_size: int | None = None,
) -> Path:
    """Write the files that `save_pretrained` writes, and a tokenizer."""
    folder.mkdir(parents=True)
    named = {"architectures": [_CLASSES[config["model_type"]]], "dtype": dtype, "transformers_version": TRANSFORMERS}
    _write_json(folder / "config.json", {**config, **named})
    generation: dict[str, Any] = {
        "_from_model_config": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "output_attentions": False,
    }
    generation |= {"output_hidden_states": False, "transformers_version": TRANSFORMERS, "use_cache": True}
    if padding := config.get("text_config", config)["pad_token_id"]:
        generation["pad_token_id"] = padding
    _write_json(folder / "generation_config.json", generation)
    weight_bytes = 4 if dtype == "float32" else 2
    shards = _shards(shapes, weight_bytes, max_shard_size)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{place:05d}-of-{len(shards):05d}.safetensors" for place in range(1, len(shards) + 1)]
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        count = sum(map(math.prod, shapes.values()))
        sizes = {"total_parameters": count, "total_size": weight_bytes * count}
        _write_json(folder / "model.safetensors.index.json", {"metadata": sizes, "weight_map": weight_map})
    for name, shard in zip(names, shards, strict=True):
        tensors = {
            tensor: rounded(random_weights(tensor, shapes[tensor], varied="vision" not in tensor), dtype)
            for tensor in shard
        }
        write_safetensors(folder / name, tensors, dtype)
    add_tokenizer(folder, config.get("text_config", config)["vocab_size"])
    return folder


def _shards(shapes: Shapes, weight_bytes: int, limit: int | None) -> list[list[str]]:
    """The names of each file's tensors, as huggingface_hub deals them out: what is larger than a file has its own."""
    if limit is None:
        return [list(shapes)]
    shards: list[list[str]] = []
    current: list[str] = []
    filled = 0
    for name, shape in shapes.items():
        size = weight_bytes * math.prod(shape)
        if size > limit:
            shards.append([name])
            continue
        if filled + size > limit:
            shards.append(current)
            current, filled = [], 0
        current.append(name)
        filled += size
    return [*shards, *([current] if current else [])]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
