"""Every hyperparameter once: what it is in a spec, what each layout calls it, and what a value of it may be.

All layouts read and write their hyperparameters through this table, and no other place spells a key of one. A layout
with spellings of its own is another column. The keys are those of transformers' configuration classes, of llama.cpp
src/llama-arch.cpp (`LLM_KV_NAMES`) and of Megatron-LM megatron/training/arguments.py, with the names that Megatron
Bridge's run_config.yaml has for them (TransformerConfig).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mconv.convert.model.roles import Role
from mconv.convert.model.spec import MAX_EXPERTS, MAX_LAYERS, ModelSpec, SpecError

LARGEST_COUNT = (1 << 31) - 1
"""What a count may be in every layout: GGUF's are unsigned 32-bit integers, some of which llama.cpp reads as signed."""
_LARGEST_NUMBER = 3e38  # of a float32


class Kind(Enum):
    """What a value is."""

    COUNT = "an integer from 1 to"
    POSITIVE = "a positive number"
    NUMBER = "a number, zero or more"
    FLAG = "true or false"
    TEXT = "a text"


Known = Mapping[str, Any]
"""Values by the names of their fields, as far as they have been read."""

Default = Callable[[Known], Any]


@dataclass(frozen=True, eq=False)
class Field:
    """One hyperparameter.

    Attributes:
        name: the attribute of ModelSpec; after "rope." that of Rope.
        kind: what its value is.
        config: its member of config.json, then what other versions call it: the first that is there counts. Those of
            Rope are members of an object there, see ROPE_OBJECTS.
        gguf: its keys in a GGUF file, without the architecture that stands before them there, all of which say it.
        megatron: its names in the settings of a run. The first that is set counts, unless `layouts.megatron.arguments`
            says otherwise.
        default: what a file means that is silent on it, from what is known already; None where the file has to say it.
        most: of a count.
        scalings: the types of rotary scaling that have the parameter; empty where it has nothing to do with scaling.
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
        """Its member of config.json, as it is written."""
        return self.config[0]

    @property
    def is_optional(self) -> bool:
        """Whether a file that is silent on it means no value at all."""
        return self.default is _nothing

    @property
    def rule(self) -> str:
        """What a value must be, as a sentence ends."""
        return f"{self.kind.value} {self.most}" if self.kind is Kind.COUNT else self.kind.value

    def accepts(self, value: object) -> bool:
        """Whether a value from a file is one."""
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
        """What a spec has for it."""
        in_rope = self.name.removeprefix("rope.")
        return getattr(spec, self.name) if in_rope == self.name else getattr(spec.rope, in_rope)


def _nothing(_: Known) -> None:
    """An optional value: silence means that there is none."""


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
# A run of a mixture of experts may have both, and then only the first is theirs.
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
    # The one is the opposite of the other.
    megatron=("untie_embeddings_and_output_weights", "share_embeddings_and_output_weights"),
    default=_no,
)
ATTENTION_BIAS = Field("attention_bias", Kind.FLAG, ("attention_bias",), megatron=("add_qkv_bias",), default=_no)
MLP_BIAS = Field("mlp_bias", Kind.FLAG, ("mlp_bias",), megatron=("add_bias_linear",), default=_no)
SLIDING_WINDOW = Field(
    "sliding_window",
    Kind.COUNT,
    ("sliding_window",),
    # The architectures of these models have no key for it, as llama.cpp has no use for it.
    ("mconv.attention.sliding_window",),
    megatron=("window_size",),
    default=_nothing,
)
# No file says it in so many words.
STATES_HEAD_DIM = Field("states_head_dim", Kind.FLAG)

ROPE_OBJECTS = ("rope_parameters", "rope_scaling")
"""Members of config.json that hold the rotary parameters: of transformers 5, and of those before it, where theta stood
beside it."""

ROPE_THETA = Field("rope.theta", Kind.POSITIVE, ("rope_theta",), ("rope.freq_base",), megatron=("rotary_base",))
ROPE_TYPE = Field(
    "rope.type",
    Kind.TEXT,
    ("rope_type", "type"),
    ("rope.scaling.type",),
    # Each says something of it: whether positions are rotated at all, and whether as Llama 3 does.
    megatron=("position_embedding_type", "use_rope_scaling", "rope_scaling"),
    default=lambda _: "default",
)
ROPE_FACTOR = Field(
    "rope.factor",
    Kind.POSITIVE,
    ("factor",),
    ("rope.scaling.factor",),
    # Of Llama 3's scaling, and of linear scaling.
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
    """What the shape of a tensor follows from, see `ModelSpec.dimension`."""
    return tuple(dict.fromkeys(field for axis in role.axes for field in _AXES[axis]))


@dataclass(frozen=True)
class Words:
    """How a file names its hyperparameters, for errors.

    Attributes:
        source: the file.
        spell: what it calls a field.
    """

    source: str
    spell: Callable[[Field], str]


def make_spec(words: Words, **values: Any) -> ModelSpec:
    """A spec of what a file says; what contradicts itself is said in the words of that file.

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
