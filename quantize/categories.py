"""Which rule of a mixture a tensor follows: by its role, or by its GGUF name if it has no known role.

A GGUF file may contain any tensors, and llama-quantize uses parts of their names (llama.cpp src/llama-quant.cpp
`tensor_get_category`, `tensor_allows_quantization`). For known roles, both methods give the same result.
"""

from __future__ import annotations

from mconv.convert.model.roles import Role

_PARTS = (
    ("attn_qkv.weight", Role.ATTENTION_V),  # fused: as sensitive as the V in it
    ("attn_v.weight", Role.ATTENTION_V),
    ("attn_k.weight", Role.ATTENTION_K),
    ("attn_q.weight", Role.ATTENTION_Q),
    ("attn_output.weight", Role.ATTENTION_OUTPUT),
    ("ffn_up", Role.FFN_UP),
    ("ffn_gate", Role.FFN_GATE),
    ("ffn_down", Role.FFN_DOWN),
)

_KEPT_PARTS = ("_norm.weight", "ffn_gate_inp.weight", ".position_embd", ".patch_embd", ".patch_merger")
"""Parts of the names of matrices that keep their type, since they are small and sensitive."""


def category_of(name: str, role: Role | None) -> Role | None:
    """The role whose rule a tensor follows; None if no rule applies.

    Args:
        name: its name in a GGUF file.
        role: its role, if known.
    """
    if role is not None:
        return role.dense
    return next((category for part, category in _PARTS if part in name), None)


def keeps_type(name: str, role: Role | None) -> bool:
    """Whether a tensor of any shape keeps its type; for the arguments see `category_of`."""
    if role is not None:
        return role.keeps_float32
    return not name.endswith("weight") or any(part in name for part in _KEPT_PARTS)
