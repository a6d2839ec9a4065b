"""What Megatron-Core calls each role, and which of them it fuses.

Keys are those of torch_dist checkpoints (Megatron-LM megatron/core/models/gpt/gpt_layer_specs.py and
megatron/core/transformer/transformer_block.py): layers stacked along a leading axis, experts along the next, unless a
run stored each under its own number. Which ranks wrote them leaves no trace in a key.
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
"""Role to key, with `{layer}` and `{expert}` where a stack of layers or experts has a leading axis. Roles that share a
key are fused there, and follow each other as they do here, gate before up, unless `places` says where their rows
stand."""

_QKV_PARTS: dict[Role, Literal["query", "key", "value"]] = {
    Role.ATTENTION_Q: "query",
    Role.ATTENTION_K: "key",
    Role.ATTENTION_V: "value",
    Role.ATTENTION_Q_BIAS: "query",
    Role.ATTENTION_K_BIAS: "key",
    Role.ATTENTION_V_BIAS: "value",
}

# What different wrappers put before every key: DDP and Float16Module, NeMo 2, Bridge's vision-language models.
_PREFIX = re.compile(r"^((model|module|language_model)\.)+(?=(embedding|decoder|output_layer)\.)")
# The norm before each half of a layer has another name where a layer spec does not fuse it into the linear layer.
_SPELLINGS = {
    ".input_layernorm.": ".self_attention.linear_qkv.layer_norm_",
    ".pre_mlp_layernorm.": ".mlp.linear_fc1.layer_norm_",
}


def key_of(role: Role) -> str:
    """The key of a role, as a template.

    Raises:
        MappingError: Megatron-Core has no place for such a tensor.
    """
    if role not in KEYS:
        raise MappingError(f"the Megatron layout has no place for the role {role.value}", "convert to another layout")
    return KEYS[role]


def stacked_key(template: str) -> str:
    """The key of a whole stack of layers and experts."""
    return template.replace(LAYER, "").replace(EXPERT, "")


def places(role: Role, spec: ModelSpec) -> RowOrder | None:
    """Where a tensor's rows stand in the fused one; None where they follow those of the roles before it."""
    if role not in _QKV_PARTS:
        return None
    return GroupedQkv(_QKV_PARTS[role], spec.heads, spec.kv_heads, spec.head_dim)


def cut_of(key: str) -> tuple[int | None, int]:
    """How tensor ranks share a tensor out.

    Args:
        key: canonical; layers and experts may be under their own numbers.

    Returns:
        The axis, None where each rank has all of it; and how many tensors follow each other along it.
    """
    template = re.sub(r"\.\d+(?=\.)", "", key)
    roles = [role for role, known in KEYS.items() if stacked_key(known) == template]
    follow = sum(role not in _QKV_PARTS for role in roles)
    return (roles[0].shared_axis, max(1, follow)) if roles else (None, 1)


def canonical_key(key: str) -> str:
    """The key without wrappers' prefixes, a norm under its fused name."""
    key = _PREFIX.sub("", key)
    for separate, fused in _SPELLINGS.items():
        key = key.replace(separate, fused)
    return key


def separate_norm_key(key: str) -> str | None:
    """How a layer spec that keeps the norm before a mixture of experts apart calls it; None for every other key."""
    fused = _SPELLINGS[".pre_mlp_layernorm."]
    return key.replace(fused, ".pre_mlp_layernorm.") if fused in key else None
