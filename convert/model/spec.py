"""The hyperparameters of a model, independent of any layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mconv.convert.errors import MappingError
from mconv.convert.model.roles import Role

MAX_LAYERS = 512
MAX_EXPERTS = 1024
"""llama.cpp src/llama-hparams.h, LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS: more than any model has. They bound the lists
with an item per layer and expert, even for a malicious file."""


class SpecError(MappingError):
    """Hyperparameters that contradict each other or are impossible; readers restate it with the names of their file.

    Args:
        what, hint: templates with the names of `fields` in braces, since each kind of file names them differently.
        fields: the attributes of ModelSpec in the templates.
    """

    def __init__(self, what: str, hint: str, fields: tuple[str, ...]) -> None:
        super().__init__(what, hint, fields)
        self.fields = fields
        self._templates = what, hint
        self.what, self.hint = self._fill({name: name for name in fields})

    def named(self, names: Mapping[str, str], source: str) -> MappingError:
        """The same error with the names of a file.

        Args:
            names: field to its name in the file.
            source: the name of the file.
        """
        what, hint = self._fill(names)
        return MappingError(what, f"{hint} in {source}")

    def _fill(self, names: Mapping[str, str]) -> tuple[str, str]:
        what, hint = self._templates
        return what.format_map(names), hint.format_map(names)


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding, with the scaling that extends it to a longer context.

    Attributes:
        theta: base of the frequencies.
        type: "default", "linear", "yarn" or "llama3", as transformers names them.
        factor: by how much the context was extended.
        original_context: tokens of the context before it was extended.
        beta_fast, beta_slow: YaRN's correction range, in rotations.
        attention_factor, extrapolation_factor: YaRN's optional overrides.
        mscale_all_dim: YaRN's logarithmic multiplier of the attention.
        low_freq_factor, high_freq_factor: the band over which Llama 3 interpolates.
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
    """The hyperparameters of a model, independent of its layout.

    Attributes:
        family: the name of its family.
        heads, kv_heads, head_dim: attention shape; heads * head_dim can differ from hidden.
        states_head_dim: whether the configuration contains head_dim, rather than leaving it to hidden / heads.
        tied: the output matrix is the token embedding.
        experts, experts_per_token: zero for a dense model.
        attention_temperature_scale: beta of Llama 4's scaling of queries by position, if used.
        attention_bias, mlp_bias: whether these linear layers have a bias.
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
                f"{self.heads} attention heads cannot be divided among {self.kv_heads} key-value heads",
                "{heads} must be a multiple of {kv_heads}",
                ("heads", "kv_heads"),
            )
        if self.head_dim % 2:
            raise SpecError(
                f"{{head_dim}} {self.head_dim} is odd, but rotary embeddings rotate pairs of values",
                "check {head_dim}, {hidden} and {heads}",
                ("head_dim", "hidden", "heads"),
            )

    def shape_of(self, role: Role) -> tuple[int, ...]:
        """The shape of one tensor of a role (of a single expert)."""
        return tuple(self.dimension(axis) for axis in role.axes)

    def dimension(self, name: str) -> int:
        """The length of an axis, by its name in `Role.axes`."""
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
