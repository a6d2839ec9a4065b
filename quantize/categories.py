"""Which rule of a mixture a tensor follows: by its role, or for tensors that no family here has by its GGUF name.

A GGUF file may hold any tensors, and llama-quantize goes by parts of their names (llama.cpp src/llama-quant.cpp
`tensor_get_category`, `tensor_allows_quantization`). For the roles that are known the two say the same.
"""

from __future__ import annotations

from mconv.convert.model.roles import Role

_PARTS = (
    ("attn_qkv.weight", Role.ATTENTION_V),  # fused: as precious as the V in it
    ("attn_v.weight", Role.ATTENTION_V),
    ("attn_k.weight", Role.ATTENTION_K),
    ("attn_q.weight", Role.ATTENTION_Q),
    ("attn_output.weight", Role.ATTENTION_OUTPUT),
    ("ffn_up", Role.FFN_UP),
    ("ffn_gate", Role.FFN_GATE),
    ("ffn_down", Role.FFN_DOWN),
)

_KEPT_PARTS = ("_norm.weight", "ffn_gate_inp.weight", ".position_embd", ".patch_embd", ".patch_merger")
"""Of the names of matrices that keep their type: small, and the model hangs on them."""


def category_of(name: str, role: Role | None) -> Role | None:
    """The role whose rule a tensor follows; None where there is a rule for none like it.

    Args:
        name: in a GGUF file.
        role: what the tensor does, where that is known.
    """
    if role is not None:
        return role.dense
    return next((category for part, category in _PARTS if part in name), None)


def keeps_type(name: str, role: Role | None) -> bool:
    """Whether a tensor takes no part in quantization, whatever its shape; for the arguments see `category_of`."""
    if role is not None:
        return role.keeps_float32
    return not name.endswith("weight") or any(part in name for part in _KEPT_PARTS)
