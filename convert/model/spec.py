"""A model's hyperparameters, free of any layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mconv.convert.errors import MappingError
from mconv.convert.model.roles import Role

MAX_LAYERS = 512
MAX_EXPERTS = 1024
"""llama.cpp src/llama-hparams.h, LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS: more than any model has. What is listed for
every layer and expert stays small, whatever a file says."""


class SpecError(MappingError):
    """Hyperparameters that contradict each other, or that no model has; readers say it in the words of their file.

    Args:
        what, hint: with the names of `fields` in braces, which every file spells in its own way.
        fields: attributes of a ModelSpec.
    """

    def __init__(self, what: str, hint: str, fields: tuple[str, ...]) -> None:
        super().__init__(what, hint, fields)
        self.fields = fields
        self._templates = what, hint
        self.what, self.hint = self._fill({name: name for name in fields})

    def named(self, names: Mapping[str, str], source: str) -> MappingError:
        """The same in the words of a file.

        Args:
            names: field to what the file calls it.
            source: the file.
        """
        what, hint = self._fill(names)
        return MappingError(what, f"{hint} in {source}")

    def _fill(self, names: Mapping[str, str]) -> tuple[str, str]:
        what, hint = self._templates
        return what.format_map(names), hint.format_map(names)


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding, with the scaling that stretches it over a longer context.

    Attributes:
        theta: base of the frequencies.
        type: "default", "linear", "yarn" or "llama3", as transformers names them.
        factor: how many times the context grew.
        original_context: tokens of the context before it grew.
        beta_fast, beta_slow: YaRN's correction range, in rotations.
        attention_factor, extrapolation_factor: YaRN's optional overrides.
        mscale_all_dim: YaRN's logarithmic multiplier of the attention.
        low_freq_factor, high_freq_factor: the band that Llama 3 blends over.
    """

    theta: float
    type: str = "default"
    factor: float | None = None
    original_context: int | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    extrapolation_factor: float | None = None
    mscale_all_dim: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True)
class ModelSpec:
    """What a model of the family is, whatever layout it lies in.

    Attributes:
        family: name of the family that it is of.
        heads, kv_heads, head_dim: attention shape; heads * head_dim need not be hidden.
        states_head_dim: whether the configuration names head_dim rather than leaving it to hidden / heads.
        tied: the output matrix is the token embedding.
        experts, experts_per_token: zero for a dense model.
        attention_temperature_scale: beta of Llama 4's scaling of queries by position, where used.
        attention_bias, mlp_bias: the linear layers that carry a bias.
    """

    family: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rms_norm_eps: float
    rope: Rope = field(default_factory=lambda: Rope(theta=10000.0))
    states_head_dim: bool = True
    tied: bool = False
    experts: int = 0
    experts_per_token: int = 0
    sliding_window: int | None = None
    attention_temperature_scale: float | None = None
    attention_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        if self.layers > MAX_LAYERS or self.experts > MAX_EXPERTS:
            raise SpecError(
                f"{self.layers} layers of {self.experts} experts are more than any model has",
                f"up to {MAX_LAYERS} layers and {MAX_EXPERTS} experts are supported; check {{layers}} and {{experts}}",
                ("layers", "experts"),
            )
        if self.kv_heads <= 0 or self.heads % self.kv_heads:
            raise SpecError(
                f"{self.heads} attention heads cannot be shared by {self.kv_heads} key-value heads",
                "{heads} must be a multiple of {kv_heads}",
                ("heads", "kv_heads"),
            )
        if self.head_dim % 2:
            raise SpecError(
                f"{{head_dim}} {self.head_dim} is odd: rotary embeddings turn pairs of values",
                "check {head_dim}, {hidden} and {heads}",
                ("head_dim", "hidden", "heads"),
            )

    def shape_of(self, role: Role) -> tuple[int, ...]:
        """The shape of one tensor of a role; that of a single expert."""
        return tuple(self.dimension(axis) for axis in role.axes)

    def dimension(self, name: str) -> int:
        """The length of an axis that a role names."""
        lengths = {
            "hidden": self.hidden,
            "ffn": self.ffn,
            "vocab": self.vocab,
            "query": self.heads * self.head_dim,
            "key_value": self.kv_heads * self.head_dim,
            "experts": self.experts,
            "rotary_pairs": self.head_dim // 2,
        }
        return lengths[name]
