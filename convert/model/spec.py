"""A model's hyperparameters, free of any layout."""

from __future__ import annotations

from dataclasses import dataclass, field

from mconv.convert.errors import MappingError

MAX_LAYERS = 512
MAX_EXPERTS = 1024
"""llama.cpp src/llama-hparams.h, LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS: more than any model has. What is listed for
every layer and expert stays small, whatever a file says."""


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
        family: name of the family table that maps its tensors.
        gguf_architecture: `general.architecture` of its GGUF form.
        heads, kv_heads, head_dim: attention shape; heads * head_dim need not be hidden.
        states_head_dim: whether the configuration names head_dim rather than leaving it to hidden / heads.
        tied: the output matrix is the token embedding.
        experts, experts_per_token: zero for a dense model.
        attention_temperature_scale: beta of Llama 4's scaling of queries by position, where used.
        attention_bias, mlp_bias: the linear layers that carry a bias.
    """

    family: str
    gguf_architecture: str
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
            raise MappingError(
                f"{self.layers} layers of {self.experts} experts are more than any model has",
                f"up to {MAX_LAYERS} layers and {MAX_EXPERTS} experts are supported; the file may be damaged",
            )
        if self.kv_heads <= 0 or self.heads % self.kv_heads:
            raise MappingError(
                f"{self.heads} attention heads cannot be shared by {self.kv_heads} key-value heads",
                "num_attention_heads must be a multiple of num_key_value_heads in config.json",
            )
        if self.head_dim % 2:
            raise MappingError(
                f"head_dim {self.head_dim} is odd: rotary embeddings turn pairs of values",
                "check head_dim, hidden_size and num_attention_heads in config.json",
            )

    def dimension(self, name: str) -> int:
        """The length of an axis that a family table names: hidden, ffn, vocab, query, key_value, experts."""
        lengths = {
            "hidden": self.hidden,
            "ffn": self.ffn,
            "vocab": self.vocab,
            "query": self.heads * self.head_dim,
            "key_value": self.kv_heads * self.head_dim,
            "experts": self.experts,
        }
        return lengths[name]
