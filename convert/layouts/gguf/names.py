"""The name of each role in a GGUF file, and the order of its rows there.

The names are those of llama.cpp src/llama-arch.cpp, `LLM_TENSOR_NAMES`.
"""

from __future__ import annotations

import re

from mconv.convert.errors import MappingError
from mconv.convert.families.table import Family
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.orders import RotaryInterleaved, RowOrder

_BLOCK = "blk.{layer}."

NAMES: dict[Role, str] = {
    Role.TOKEN_EMBEDDING: "token_embd.weight",
    Role.OUTPUT_NORM: "output_norm.weight",
    Role.OUTPUT: "output.weight",
    Role.ROPE_FACTORS: "rope_freqs.weight",
    Role.ATTENTION_NORM: _BLOCK + "attn_norm.weight",
    Role.ATTENTION_Q: _BLOCK + "attn_q.weight",
    Role.ATTENTION_K: _BLOCK + "attn_k.weight",
    Role.ATTENTION_V: _BLOCK + "attn_v.weight",
    Role.ATTENTION_OUTPUT: _BLOCK + "attn_output.weight",
    Role.ATTENTION_Q_BIAS: _BLOCK + "attn_q.bias",
    Role.ATTENTION_K_BIAS: _BLOCK + "attn_k.bias",
    Role.ATTENTION_V_BIAS: _BLOCK + "attn_v.bias",
    Role.ATTENTION_OUTPUT_BIAS: _BLOCK + "attn_output.bias",
    Role.FFN_NORM: _BLOCK + "ffn_norm.weight",
    Role.FFN_GATE: _BLOCK + "ffn_gate.weight",
    Role.FFN_UP: _BLOCK + "ffn_up.weight",
    Role.FFN_DOWN: _BLOCK + "ffn_down.weight",
    Role.FFN_GATE_BIAS: _BLOCK + "ffn_gate.bias",
    Role.FFN_UP_BIAS: _BLOCK + "ffn_up.bias",
    Role.FFN_DOWN_BIAS: _BLOCK + "ffn_down.bias",
    Role.ROUTER: _BLOCK + "ffn_gate_inp.weight",
    Role.EXPERT_GATE: _BLOCK + "ffn_gate_exps.weight",
    Role.EXPERT_DOWN: _BLOCK + "ffn_down_exps.weight",
    Role.EXPERT_UP: _BLOCK + "ffn_up_exps.weight",
}
"""Role to name, with the placeholder `{layer}`. The experts of a layer are stacked along a leading axis. Tensors that
share a position in the order of a file are written in the order of this table."""

_ROLES = {name: role for role, name in NAMES.items()}
_LAYER = re.compile(r"blk\.(\d+)\.")


def name_of(role: Role, layer: int | None = None) -> str:
    """The name of a tensor in a GGUF file.

    Args:
        layer: its number, for a role in a layer.

    Raises:
        MappingError: GGUF cannot store such a tensor.
    """
    if role not in NAMES:
        raise MappingError(f"the GGUF layout has no place for the role {role.value}", "convert to another layout")
    return NAMES[role].format(layer=layer)


def short_name(role: Role) -> str:
    """The name without layer and suffix: attn_q, ffn_down_exps, output_norm."""
    return NAMES[role].removeprefix(_BLOCK).removesuffix(".weight")


def role_of(name: str) -> Role | None:
    """The role of a tensor in a GGUF file; None if no role has the name, as in files of other models or writers."""
    return _ROLES.get(_LAYER.sub(_BLOCK, name, count=1) if _LAYER.match(name) else name)


def layer_of(name: str) -> int | None:
    """The number of the layer in a name, or None."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def row_order(role: Role, family: Family, spec: ModelSpec) -> RowOrder | None:
    """The order of a tensor's rows in GGUF; None if it is that of the canonical tensor.

    In llama.cpp, the architectures of these families rotate neighbouring values.
    """
    if family.rotary == "interleaved":
        return None
    if role in (Role.ATTENTION_Q, Role.ATTENTION_Q_BIAS):
        return RotaryInterleaved(spec.heads, spec.head_dim)
    if role in (Role.ATTENTION_K, Role.ATTENTION_K_BIAS):
        return RotaryInterleaved(spec.kv_heads, spec.head_dim)
    return None
