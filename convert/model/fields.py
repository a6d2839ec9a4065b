"""The table of hyperparameters: the attribute of each in a spec, its name in each layout, and its valid values.

All layouts read and write their hyperparameters through this table; their keys are spelled only here. A layout with
other names is another column. The keys are those of transformers' configuration classes, of llama.cpp
src/llama-arch.cpp (`LLM_KV_NAMES`) and of Megatron-LM megatron/training/arguments.py, with the names of Megatron
Bridge's run_config.yaml (TransformerConfig).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mconv.convert.model.roles import Role
from mconv.convert.model.spec import MAX_EXPERTS, MAX_LAYERS, ModelSpec, SpecError

LARGEST_COUNT = (1 << 31) - 1
"""The largest count in any layout: GGUF has unsigned 32-bit integers, some of which llama.cpp reads as signed."""
_LARGEST_NUMBER = 3e38  # about the largest float32


class Kind(Enum):
    """The kind of a value."""

    COUNT = "an integer from 1 to"
    POSITIVE = "a positive number"
    NUMBER = "a number, zero or more"
    FLAG = "true or false"
    TEXT = "a text"


Known = Mapping[str, Any]
"""The values read so far, by the names of their fields."""

Default = Callable[[Known], Any]


@dataclass(frozen=True, eq=False)
class Field:
    """One hyperparameter.

    Attributes:
        name: the attribute of ModelSpec; with the prefix "rope.", the attribute of Rope.
        kind: the kind of its value.
        config: its member of config.json, then its names in other versions: the first one present is used. Those of
            Rope are members of an object; see ROPE_OBJECTS.
        gguf: its keys in a GGUF file, without the architecture prefix; all of them hold the value.
        megatron: its names in the settings of a run. The first one that is set is used, unless
            `layouts.megatron.arguments` handles the field.
        default: computes the value for a file that omits it, from the values read so far; None if it is required.
        most: the largest valid count.
        scalings: the types of rotary scaling that have the parameter; empty if it does not depend on scaling.
    """

    name: str
    kind: Kind
    config: tuple[str, ...] = ()
    gguf: tuple[str, ...] = ()
    megatron: tuple[str, ...] = ()
    default: Default | None = None
    most: int = LARGEST_COUNT
    scalings: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<Field {self.name}>"

    @property
    def member(self) -> str:
        """Its member of config.json, as written by this package."""
        return self.config[0]

    @property
    def is_optional(self) -> bool:
        """Whether a file that omits it has no value for it."""
        return self.default is _nothing

    @property
    def rule(self) -> str:
        """What a value must be, as the end of a sentence."""
        return f"{self.kind.value} {self.most}" if self.kind is Kind.COUNT else self.kind.value

    def accepts(self, value: object) -> bool:
        """Whether a value from a file is valid."""
        if self.kind is Kind.FLAG:
            return isinstance(value, bool)
        if self.kind is Kind.TEXT:
            return isinstance(value, str)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.kind is Kind.COUNT:
            return isinstance(value, int) and 0 < value <= self.most
        return 0 <= value <= _LARGEST_NUMBER and (value > 0 or self.kind is Kind.NUMBER)

    def value(self, spec: ModelSpec) -> Any:
        """Its value in a spec."""
        in_rope = self.name.removeprefix("rope.")
        return getattr(spec, self.name) if in_rope == self.name else getattr(spec.rope, in_rope)


def _nothing(_: Known) -> None:
    """The default of an optional value: None."""


def _no(_: Known) -> bool:
    return False


def _as_many_as_heads(known: Known) -> int:
    return int(known["heads"])


def _divided_hidden(known: Known) -> int:
    return int(known["hidden"]) // max(int(known["heads"]), 1)


_SCALED = frozenset({"linear", "yarn", "llama3"})
_STRETCHED = frozenset({"yarn", "llama3"})
_YARN, _LLAMA3 = frozenset({"yarn"}), frozenset({"llama3"})

LAYERS = Field(
    "layers", Kind.COUNT, ("num_hidden_layers",), ("block_count",), megatron=("num_layers",), most=MAX_LAYERS
)
HIDDEN = Field("hidden", Kind.COUNT, ("hidden_size",), ("embedding_length",), megatron=("hidden_size",))
# A run of a mixture of experts may have both; then only the first one applies to the experts.
FFN = Field(
    "ffn",
    Kind.COUNT,
    ("intermediate_size",),
    ("feed_forward_length",),
    megatron=("moe_ffn_hidden_size", "ffn_hidden_size"),
)
HEADS = Field(
    "heads", Kind.COUNT, ("num_attention_heads",), ("attention.head_count",), megatron=("num_attention_heads",)
)
KV_HEADS = Field(
    "kv_heads",
    Kind.COUNT,
    ("num_key_value_heads",),
    ("attention.head_count_kv",),
    megatron=("num_query_groups",),
    default=_as_many_as_heads,
)
HEAD_DIM = Field(
    "head_dim",
    Kind.COUNT,
    ("head_dim",),
    ("attention.key_length", "attention.value_length", "rope.dimension_count"),
    megatron=("kv_channels",),
    default=_divided_hidden,
)
VOCAB = Field("vocab", Kind.COUNT, ("vocab_size",), ("vocab_size",), megatron=("vocab_size",))
CONTEXT = Field(
    "context",
    Kind.COUNT,
    ("max_position_embeddings",),
    ("context_length",),
    megatron=("max_position_embeddings", "seq_length"),
)
RMS_NORM_EPS = Field(
    "rms_norm_eps",
    Kind.POSITIVE,
    ("rms_norm_eps",),
    ("attention.layer_norm_rms_epsilon",),
    megatron=("norm_epsilon", "layernorm_epsilon"),
)
EXPERTS = Field(
    "experts",
    Kind.COUNT,
    ("num_local_experts",),
    ("expert_count",),
    megatron=("num_experts", "num_moe_experts"),
    default=lambda _: 0,
    most=MAX_EXPERTS,
)
EXPERTS_PER_TOKEN = Field(
    "experts_per_token",
    Kind.COUNT,
    ("num_experts_per_tok",),
    ("expert_used_count",),
    megatron=("moe_router_topk",),
)
ATTENTION_TEMPERATURE_SCALE = Field(
    "attention_temperature_scale",
    Kind.NUMBER,
    ("llama_4_scaling_beta",),  # a member of the object of rotary parameters
    ("attention.temperature_scale",),
    default=_nothing,
)
TIED = Field(
    "tied",
    Kind.FLAG,
    ("tie_word_embeddings",),
    # One is the opposite of the other.
    megatron=("untie_embeddings_and_output_weights", "share_embeddings_and_output_weights"),
    default=_no,
)
ATTENTION_BIAS = Field("attention_bias", Kind.FLAG, ("attention_bias",), megatron=("add_qkv_bias",), default=_no)
MLP_BIAS = Field("mlp_bias", Kind.FLAG, ("mlp_bias",), megatron=("add_bias_linear",), default=_no)
SLIDING_WINDOW = Field(
    "sliding_window",
    Kind.COUNT,
    ("sliding_window",),
    # llama.cpp does not use it, so the architectures of these models have no key for it.
    ("mconv.attention.sliding_window",),
    megatron=("window_size",),
    default=_nothing,
)
# Not stored directly in any file.
STATES_HEAD_DIM = Field("states_head_dim", Kind.FLAG)

ROPE_OBJECTS = ("rope_parameters", "rope_scaling")
"""Members of config.json that hold the rotary parameters: in transformers 5, and in earlier versions, where theta is
outside the object."""

ROPE_THETA = Field("rope.theta", Kind.POSITIVE, ("rope_theta",), ("rope.freq_base",), megatron=("rotary_base",))
ROPE_TYPE = Field(
    "rope.type",
    Kind.TEXT,
    ("rope_type", "type"),
    ("rope.scaling.type",),
    # Each says part of it: whether positions are rotated at all, and whether with Llama 3's scaling.
    megatron=("position_embedding_type", "use_rope_scaling", "rope_scaling"),
    default=lambda _: "default",
)
ROPE_FACTOR = Field(
    "rope.factor",
    Kind.POSITIVE,
    ("factor",),
    ("rope.scaling.factor",),
    # Used by Llama 3's scaling and by linear scaling.
    megatron=("rope_scaling_factor", "rotary_seq_len_interpolation_factor"),
    scalings=_SCALED,
)
ROPE_ORIGINAL_CONTEXT = Field(
    "rope.original_context",
    Kind.COUNT,
    ("original_max_position_embeddings",),
    ("rope.scaling.original_context_length",),
    scalings=_STRETCHED,
)
ROPE_LOW_FREQ_FACTOR = Field(
    "rope.low_freq_factor", Kind.POSITIVE, ("low_freq_factor",), default=lambda _: 1.0, scalings=_LLAMA3
)
ROPE_HIGH_FREQ_FACTOR = Field(
    "rope.high_freq_factor", Kind.POSITIVE, ("high_freq_factor",), default=lambda _: 4.0, scalings=_LLAMA3
)
ROPE_BETA_FAST = Field(
    "rope.beta_fast", Kind.NUMBER, ("beta_fast",), ("rope.scaling.yarn_beta_fast",), default=_nothing, scalings=_YARN
)
ROPE_BETA_SLOW = Field(
    "rope.beta_slow", Kind.NUMBER, ("beta_slow",), ("rope.scaling.yarn_beta_slow",), default=_nothing, scalings=_YARN
)
ROPE_ATTENTION_FACTOR = Field(
    "rope.attention_factor",
    Kind.NUMBER,
    ("attention_factor", "attn_factor"),
    ("rope.scaling.yarn_attn_factor",),
    default=_nothing,
    scalings=_YARN,
)
ROPE_EXTRAPOLATION_FACTOR = Field(
    "rope.extrapolation_factor",
    Kind.NUMBER,
    ("extrapolation_factor",),
    ("rope.scaling.yarn_ext_factor",),
    default=_nothing,
    scalings=_YARN,
)
ROPE_MSCALE_ALL_DIM = Field(
    "rope.mscale_all_dim",
    Kind.NUMBER,
    ("mscale_all_dim",),
    ("rope.scaling.yarn_log_multiplier",),
    default=_nothing,
    scalings=_YARN,
)

ROPE_FIELDS = (
    ROPE_THETA,
    ROPE_TYPE,
    ROPE_FACTOR,
    ROPE_ORIGINAL_CONTEXT,
    ROPE_LOW_FREQ_FACTOR,
    ROPE_HIGH_FREQ_FACTOR,
    ROPE_BETA_FAST,
    ROPE_BETA_SLOW,
    ROPE_ATTENTION_FACTOR,
    ROPE_EXTRAPOLATION_FACTOR,
    ROPE_MSCALE_ALL_DIM,
)
"""The attributes of Rope, in the order in which config.json has them."""

FIELDS = (
    LAYERS,
    HIDDEN,
    FFN,
    HEADS,
    KV_HEADS,
    HEAD_DIM,
    VOCAB,
    RMS_NORM_EPS,
    EXPERTS,
    EXPERTS_PER_TOKEN,
    ATTENTION_TEMPERATURE_SCALE,
    TIED,
    ATTENTION_BIAS,
    MLP_BIAS,
    CONTEXT,
    SLIDING_WINDOW,
    STATES_HEAD_DIM,
    *ROPE_FIELDS,
)
"""Every hyperparameter of a ModelSpec."""


_AXES = {
    "hidden": (HIDDEN,),
    "ffn": (FFN,),
    "vocab": (VOCAB,),
    "query": (HEADS, HEAD_DIM),
    "key_value": (KV_HEADS, HEAD_DIM),
    "experts": (EXPERTS,),
    "rotary_pairs": (HEAD_DIM,),
}


def fields_of(role: Role) -> tuple[Field, ...]:
    """The fields that determine the shape of a tensor; see `ModelSpec.dimension`."""
    return tuple(dict.fromkeys(field for axis in role.axes for field in _AXES[axis]))


@dataclass(frozen=True)
class Words:
    """The names of hyperparameters in a file, for error messages.

    Attributes:
        source: the name of the file.
        spell: gives the name of a field in the file.
    """

    source: str
    spell: Callable[[Field], str]


def make_spec(words: Words, **values: Any) -> ModelSpec:
    """Make a spec from the values of a file; errors use the names of that file.

    Args:
        values: arguments of ModelSpec.

    Raises:
        MappingError: the values contradict each other.
    """
    try:
        return ModelSpec(**values)
    except SpecError as error:
        names = {field.name: words.spell(field) for field in FIELDS if field.name in error.fields}
        raise error.named(names, words.source) from error
