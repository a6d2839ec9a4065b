"""Small checkpoints made with transformers' own classes, random weights and real tokenizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mistral_common
import torch
import transformers

TOKENIZERS = Path(mistral_common.__file__).parent / "data"

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
"""heads * head_dim is 512, twice hidden, as Mistral Small's differ; rows are whole K-quant super-blocks."""


VISION = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}

TEMPLATE = "{{ bos_token }}{% for message in messages %}[INST] {{ message.content }} [/INST]{% endfor %}"

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def save(
    folder: Path,
    config: transformers.PretrainedConfig,
    *,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: str = "5GB",
    tokenizer: str = "sentencepiece",
    model_class: Any = transformers.AutoModelForCausalLM,
) -> Path:
    """Write a checkpoint with random weights that are not all alike: norms near one, matrices with outlier columns."""
    torch.manual_seed(0)
    model = model_class.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
            elif "vision" not in name:
                parameter.mul_(1 + torch.rand(parameter.shape[-1]) ** 8 * 4)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    add_tokenizer(folder, tokenizer)
    return folder


def add_tokenizer(folder: Path, tokenizer: str) -> None:
    """Put one of mistral-common's tokenizers into a checkpoint: "sentencepiece" or "tekken"."""
    if tokenizer == "tekken":
        shutil.copy(TOKENIZERS / "tekken_240911.json", folder / "tekken.json")
        return
    shutil.copy(TOKENIZERS / "tokenizer.model.v1", folder / "tokenizer.model")
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    settings |= {"add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def mistral(folder: Path, *, dtype: torch.dtype = torch.bfloat16, max_shard_size: str = "5GB", **shape: Any) -> Path:
    """A dense Mistral."""
    config = transformers.MistralConfig(**{**SHAPE, "rope_theta": 1e6, "sliding_window": None, **shape})
    return save(folder, config, dtype=dtype, max_shard_size=max_shard_size)


def mixtral(folder: Path, **shape: Any) -> Path:
    """A mixture of eight experts."""
    config = transformers.MixtralConfig(**{**SHAPE, "num_local_experts": 8, "num_hidden_layers": 4, **shape})
    return save(folder, config)


def llama(folder: Path, *, dtype: torch.dtype = torch.bfloat16, **shape: Any) -> Path:
    """A plain Llama."""
    return save(folder, transformers.LlamaConfig(**{**SHAPE, **shape}), dtype=dtype)


def mistral3(folder: Path) -> Path:
    """Mistral Small 3.1 in small."""
    text = {**SHAPE, "model_type": "mistral", "sliding_window": None, "num_hidden_layers": 3}
    config = transformers.Mistral3Config(text_config=text, vision_config=VISION, tie_word_embeddings=False)
    return save(folder, config, model_class=transformers.AutoModelForImageTextToText)


def ministral3(folder: Path) -> Path:
    """Ministral 3 in small, with the tokenizer as Mistral ships it."""
    text = {**SHAPE, "model_type": "ministral3", "vocab_size": 131072, "num_hidden_layers": 2}
    text |= {"max_position_embeddings": 262144}
    config = transformers.Mistral3Config(text_config=text, vision_config=VISION, tie_word_embeddings=True)
    return save(folder, config, tokenizer="tekken", model_class=transformers.AutoModelForImageTextToText)
