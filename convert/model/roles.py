"""The role of a tensor in a model, independent of any layout.

A family lists the roles of its tensors with their Hugging Face names; a layout defines where it stores each role. This
module defines everything that follows from the role alone.
"""

from __future__ import annotations

from enum import Enum

from mconv.convert.tensors.plain import plain


@plain
class Role(Enum):
    """The purpose of a tensor. The role is the same in all layers, and in all experts.

    Example:
        >>> Role.ATTENTION_OUTPUT.axes, Role.ATTENTION_OUTPUT.shared_axis
        (('hidden', 'query'), 1)
        >>> Role.EXPERT_DOWN.dense
        <Role.FFN_DOWN: 'ffn_down'>
    """

    TOKEN_EMBEDDING = "token_embedding"
    OUTPUT_NORM = "output_norm"
    OUTPUT = "output"
    ROPE_FACTORS = "rope_factors"
    ATTENTION_NORM = "attention_norm"
    ATTENTION_Q = "attention_q"
    ATTENTION_K = "attention_k"
    ATTENTION_V = "attention_v"
    ATTENTION_OUTPUT = "attention_output"
    ATTENTION_Q_BIAS = "attention_q_bias"
    ATTENTION_K_BIAS = "attention_k_bias"
    ATTENTION_V_BIAS = "attention_v_bias"
    ATTENTION_OUTPUT_BIAS = "attention_output_bias"
    FFN_NORM = "ffn_norm"
    FFN_GATE = "ffn_gate"
    FFN_UP = "ffn_up"
    FFN_DOWN = "ffn_down"
    FFN_GATE_BIAS = "ffn_gate_bias"
    FFN_UP_BIAS = "ffn_up_bias"
    FFN_DOWN_BIAS = "ffn_down_bias"
    ROUTER = "router"
    EXPERT_GATE = "expert_gate"
    EXPERT_UP = "expert_up"
    EXPERT_DOWN = "expert_down"

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of one tensor (of a single expert), slowest first, as names for `ModelSpec.dimension`."""
        return _AXES[self]

    @property
    def is_norm(self) -> bool:
        """Whether it is the weight of a norm."""
        return self in _NORMS

    @property
    def is_expert(self) -> bool:
        """Whether each expert of a mixture has such a tensor."""
        return self in _DENSE

    @property
    def keeps_float32(self) -> bool:
        """Whether it is small and sensitive to rounding: vectors, including norms, and the router."""
        return len(self.axes) == 1 or self is Role.ROUTER

    @property
    def shared_axis(self) -> int | None:
        """The axis that tensor parallelism splits; None if every rank has the whole tensor.

        Vocabulary, heads and the inner width of the MLP are split; the hidden width never is.
        """
        return next((place for place, axis in enumerate(self.axes) if axis in _SHARED_OUT), None)

    @property
    def dense(self) -> Role:
        """The corresponding role in a model without experts; itself if it does not belong to an expert.

        A mixture of types uses it: the matrix of an expert gets the type of the matrix of an MLP.
        """
        return _DENSE.get(self, self)


_SHARED_OUT = frozenset({"vocab", "query", "key_value", "ffn"})
_NORMS = frozenset({Role.OUTPUT_NORM, Role.ATTENTION_NORM, Role.FFN_NORM})
_DENSE = {Role.EXPERT_GATE: Role.FFN_GATE, Role.EXPERT_UP: Role.FFN_UP, Role.EXPERT_DOWN: Role.FFN_DOWN}
_AXES: dict[Role, tuple[str, ...]] = {
    Role.TOKEN_EMBEDDING: ("vocab", "hidden"),
    Role.OUTPUT_NORM: ("hidden",),
    Role.OUTPUT: ("vocab", "hidden"),
    Role.ROPE_FACTORS: ("rotary_pairs",),
    Role.ATTENTION_NORM: ("hidden",),
    Role.ATTENTION_Q: ("query", "hidden"),
    Role.ATTENTION_K: ("key_value", "hidden"),
    Role.ATTENTION_V: ("key_value", "hidden"),
    Role.ATTENTION_OUTPUT: ("hidden", "query"),
    Role.ATTENTION_Q_BIAS: ("query",),
    Role.ATTENTION_K_BIAS: ("key_value",),
    Role.ATTENTION_V_BIAS: ("key_value",),
    Role.ATTENTION_OUTPUT_BIAS: ("hidden",),
    Role.FFN_NORM: ("hidden",),
    Role.FFN_GATE: ("ffn", "hidden"),
    Role.FFN_UP: ("ffn", "hidden"),
    Role.FFN_DOWN: ("hidden", "ffn"),
    Role.FFN_GATE_BIAS: ("ffn",),
    Role.FFN_UP_BIAS: ("ffn",),
    Role.FFN_DOWN_BIAS: ("hidden",),
    Role.ROUTER: ("experts", "hidden"),
    Role.EXPERT_GATE: ("ffn", "hidden"),
    Role.EXPERT_UP: ("ffn", "hidden"),
    Role.EXPERT_DOWN: ("hidden", "ffn"),
}
