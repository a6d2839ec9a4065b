"""The key of each role in Megatron-Core, and which roles it fuses.

Keys are those of torch_dist checkpoints (Megatron-LM megatron/core/models/gpt/gpt_layer_specs.py and
megatron/core/transformer/transformer_block.py): layers stacked along a leading axis, experts along the next, unless a
run stored each under its own number. Keys do not depend on the ranks that wrote them.
"""

from __future__ import annotations

import re
from typing import Literal

from mconv.convert.errors import MappingError
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.orders import GroupedQkv, RowOrder

LAYER, EXPERT = ".{layer}", ".{expert}"

_IN_LAYER = f"decoder.layers{LAYER}."
_QKV, _PROJECTION = _IN_LAYER + "self_attention.linear_qkv.", _IN_LAYER + "self_attention.linear_proj."
_FC1, _FC2 = _IN_LAYER + "mlp.linear_fc1.", _IN_LAYER + "mlp.linear_fc2."
_EXPERTS = f"{_IN_LAYER}mlp.experts.experts{EXPERT}."

KEYS: dict[Role, str] = {
    Role.TOKEN_EMBEDDING: "embedding.word_embeddings.weight",
    Role.OUTPUT_NORM: "decoder.final_layernorm.weight",
    Role.OUTPUT: "output_layer.weight",
    Role.ATTENTION_NORM: _QKV + "layer_norm_weight",
    Role.ATTENTION_Q: _QKV + "weight",
    Role.ATTENTION_K: _QKV + "weight",
    Role.ATTENTION_V: _QKV + "weight",
    Role.ATTENTION_OUTPUT: _PROJECTION + "weight",
    Role.ATTENTION_Q_BIAS: _QKV + "bias",
    Role.ATTENTION_K_BIAS: _QKV + "bias",
    Role.ATTENTION_V_BIAS: _QKV + "bias",
    Role.ATTENTION_OUTPUT_BIAS: _PROJECTION + "bias",
    Role.FFN_NORM: _FC1 + "layer_norm_weight",
    Role.FFN_GATE: _FC1 + "weight",
    Role.FFN_UP: _FC1 + "weight",
    Role.FFN_DOWN: _FC2 + "weight",
    Role.FFN_GATE_BIAS: _FC1 + "bias",
    Role.FFN_UP_BIAS: _FC1 + "bias",
    Role.FFN_DOWN_BIAS: _FC2 + "bias",
    Role.ROUTER: _IN_LAYER + "mlp.router.weight",
    Role.EXPERT_GATE: _EXPERTS + "linear_fc1.weight",
    Role.EXPERT_UP: _EXPERTS + "linear_fc1.weight",
    Role.EXPERT_DOWN: _EXPERTS + "linear_fc2.weight",
}
"""Role to key, with `{layer}` and `{expert}` where a stack of layers or experts has a leading axis. Roles with the same
key are fused, in the order of this table (gate before up), unless `places` gives another order of their rows."""

_QKV_PARTS: dict[Role, Literal["query", "key", "value"]] = {
    Role.ATTENTION_Q: "query",
    Role.ATTENTION_K: "key",
    Role.ATTENTION_V: "value",
    Role.ATTENTION_Q_BIAS: "query",
    Role.ATTENTION_K_BIAS: "key",
    Role.ATTENTION_V_BIAS: "value",
}

# Prefixes that wrappers add to every key: DDP and Float16Module, NeMo 2, Bridge's vision-language models.
_PREFIX = re.compile(r"^((model|module|language_model)\.)+(?=(embedding|decoder|output_layer)\.)")
# The norm before each half of a layer has another name if a layer spec does not fuse it into the linear layer.
_SPELLINGS = {
    ".input_layernorm.": ".self_attention.linear_qkv.layer_norm_",
    ".pre_mlp_layernorm.": ".mlp.linear_fc1.layer_norm_",
}


def key_of(role: Role) -> str:
    """The key of a role, as a template.

    Raises:
        MappingError: Megatron-Core cannot store such a tensor.
    """
    if role not in KEYS:
        raise MappingError(f"the Megatron layout has no place for the role {role.value}", "convert to another layout")
    return KEYS[role]


def stacked_key(template: str) -> str:
    """The key of a whole stack of layers and experts."""
    return template.replace(LAYER, "").replace(EXPERT, "")


def places(role: Role, spec: ModelSpec) -> RowOrder | None:
    """The positions of a tensor's rows in the fused tensor; None if they directly follow those of the previous role."""
    if role not in _QKV_PARTS:
        return None
    return GroupedQkv(_QKV_PARTS[role], spec.heads, spec.kv_heads, spec.head_dim)


def cut_of(key: str) -> tuple[int | None, int]:
    """How a tensor is split over tensor-parallel ranks.

    Args:
        key: canonical; layers and experts may have their own numbers.

    Returns:
        The axis, None if each rank has the whole tensor; and how many fused tensors follow each other along it.
    """
    template = re.sub(r"\.\d+(?=\.)", "", key)
    roles = [role for role, known in KEYS.items() if stacked_key(known) == template]
    follow = sum(role not in _QKV_PARTS for role in roles)
    return (roles[0].shared_axis, max(1, follow)) if roles else (None, 1)


def canonical_key(key: str) -> str:
    """The key without the prefixes of wrappers; a norm gets its fused name."""
    key = _PREFIX.sub("", key)
    for separate, fused in _SPELLINGS.items():
        key = key.replace(separate, fused)
    return key


def separate_norm_key(key: str) -> str | None:
    """The key of the norm before a mixture of experts in layer specs that store it separately; None for other keys."""
    fused = _SPELLINGS[".pre_mlp_layernorm."]
    return key.replace(fused, ".pre_mlp_layernorm.") if fused in key else None
