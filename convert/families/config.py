"""Reading config.json into a ModelSpec, and writing it back: the part that all families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mconv.convert.errors import MappingError, SourceError
from mconv.convert.model.spec import ModelSpec, Rope

Config = Mapping[str, Any]

_ROPE_TYPES = ("default", "linear", "yarn", "llama3")
# What GGUF's unsigned 32-bit metadata and a float32 hold.
_LARGEST_COUNT = (1 << 31) - 1
_LARGEST_NUMBER = 3e38
# llama.cpp's own limits (src/llama-hparams.h), far above any model of these families.
_MOST_LAYERS, _MOST_EXPERTS = 512, 1024


def read_spec(config: Config, defaults: Config, *, family: str, gguf_architecture: str) -> ModelSpec:
    """Build a spec from the text configuration of a checkpoint.

    Args:
        config: the text part of config.json, with `rope_parameters` (transformers 5) or `rope_theta` and
            `rope_scaling`.
        defaults: what the transformers configuration class assumes where the file is silent.

    Raises:
        SourceError: a member is missing or of the wrong type.
        MappingError: the model does something that its GGUF architecture cannot say.
    """
    merged = {**defaults, **{key: value for key, value in config.items() if value is not None}}
    activation = merged.get("hidden_act", "silu")
    if activation != "silu":
        raise MappingError(
            f"config.json: hidden_act is {activation!r}, but llama.cpp computes this architecture with silu",
            "this model cannot be carried by the layouts that are supported",
        )
    hidden, heads = positive(merged, "hidden_size"), positive(merged, "num_attention_heads")
    if merged.get("head_dim") is None and hidden % heads:
        raise SourceError(
            f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}, and head_dim is absent",
            "add head_dim to config.json",
        )
    experts = positive(merged, "num_local_experts", _MOST_EXPERTS) if "num_local_experts" in merged else 0
    return ModelSpec(
        family=family,
        gguf_architecture=gguf_architecture,
        layers=positive(merged, "num_hidden_layers", _MOST_LAYERS),
        hidden=hidden,
        ffn=positive(merged, "intermediate_size"),
        heads=heads,
        kv_heads=positive(merged, "num_key_value_heads") if "num_key_value_heads" in merged else heads,
        head_dim=positive(merged, "head_dim") if "head_dim" in merged else hidden // heads,
        states_head_dim="head_dim" in merged or bool(defaults.get("fills_head_dim")),
        vocab=positive(merged, "vocab_size"),
        context=positive(merged, "max_position_embeddings"),
        rms_norm_eps=number(merged, "rms_norm_eps"),
        rope=read_rope(merged),
        tied=flag(merged, "tie_word_embeddings"),
        experts=experts,
        experts_per_token=positive(merged, "num_experts_per_tok") if experts else 0,
        sliding_window=_whole(merged, "sliding_window"),
        attention_bias=flag(merged, "attention_bias"),
        mlp_bias=flag(merged, "mlp_bias"),
    )


def read_rope(config: Config) -> Rope:
    """Rotary embedding parameters in either spelling: transformers 5's `rope_parameters`, or the older pair of members.

    Raises:
        SourceError: a member is missing or of the wrong type.
        MappingError: a kind of scaling that GGUF's architectures of this family do not have.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise SourceError("config.json: rope_parameters is not an object", "check config.json against the original")
    merged = {key: value for key, value in parameters.items() if value is not None}
    merged.setdefault("rope_theta", config.get("rope_theta"))
    if config.get("original_max_position_embeddings") is not None:
        merged.setdefault("original_max_position_embeddings", config["original_max_position_embeddings"])
    kind = str(merged.get("rope_type", merged.get("type", "default"))).lower()
    if kind not in _ROPE_TYPES:
        raise MappingError(
            f"config.json: rope type {kind!r} is not supported",
            f"supported: {', '.join(_ROPE_TYPES)}",
        )
    rope = Rope(
        theta=number(merged, "rope_theta"),
        type=kind,
        factor=optional_number(merged, "factor"),
        original_context=_whole(merged, "original_max_position_embeddings"),
        beta_fast=optional_number(merged, "beta_fast"),
        beta_slow=optional_number(merged, "beta_slow"),
        attention_factor=optional_number(merged, "attention_factor", "attn_factor"),
        extrapolation_factor=optional_number(merged, "extrapolation_factor"),
        mscale_all_dim=optional_number(merged, "mscale_all_dim"),
        low_freq_factor=optional_number(merged, "low_freq_factor") or 1.0,
        high_freq_factor=optional_number(merged, "high_freq_factor") or 4.0,
    )
    if kind != "default" and rope.factor is None:
        raise SourceError(f"config.json: rope type {kind!r} without a factor", "add the factor to the rope parameters")
    if kind == "llama3" and rope.low_freq_factor >= rope.high_freq_factor:
        raise SourceError(
            "config.json: low_freq_factor is not below high_freq_factor", "check rope_parameters against the original"
        )
    if kind in ("yarn", "llama3") and rope.original_context is None:
        raise SourceError(
            f"config.json: rope type {kind!r} without original_max_position_embeddings",
            "add original_max_position_embeddings to the rope parameters",
        )
    return rope


def write_spec(spec: ModelSpec, architecture: str, model_type: str) -> dict[str, Any]:
    """The members of config.json that `read_spec` reads, as transformers 5 spells them.

    Args:
        architecture: the transformers class.
        model_type: its name in the registry of configurations.
    """
    members: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "max_position_embeddings": spec.context,
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "rms_norm_eps": spec.rms_norm_eps,
        "rope_parameters": _write_rope(spec.rope),
        "tie_word_embeddings": spec.tied,
        "vocab_size": spec.vocab,
    }
    if spec.states_head_dim:
        members["head_dim"] = spec.head_dim
    return members


def _write_rope(rope: Rope) -> dict[str, Any]:
    parameters: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": rope.type}
    if rope.type != "default":
        parameters["factor"] = rope.factor
    if rope.type in ("yarn", "llama3"):
        parameters["original_max_position_embeddings"] = rope.original_context
    if rope.type == "llama3":
        parameters |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    optional = {
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "attention_factor": rope.attention_factor,
        "extrapolation_factor": rope.extrapolation_factor,
        "mscale_all_dim": rope.mscale_all_dim,
    }
    return parameters | {key: value for key, value in optional.items() if value is not None}


def positive(config: Config, key: str, most: int = _LARGEST_COUNT) -> int:
    """A member that counts something: an integer from one to `most`.

    Raises:
        SourceError: it is absent or is not one.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise SourceError(f"config.json: {key} {_found(value)}", f"{key} must be an integer from 1 to {most}")
    return value


def number(config: Config, key: str) -> float:
    """A member that is a positive number.

    Raises:
        SourceError: it is absent or is not one.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _LARGEST_NUMBER:
        raise SourceError(f"config.json: {key} {_found(value)}", f"{key} must be a positive number")
    return float(value)


def optional_number(config: Config, *keys: str) -> float | None:
    """The first of these members that is there, or None.

    Raises:
        SourceError: it is negative or is not a number.
    """
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _LARGEST_NUMBER:
            raise SourceError(f"config.json: {key} {_found(value)}", f"{key} must be a number, zero or more")
        return float(value)
    return None


def flag(config: Config, key: str) -> bool:
    """A member that is true or false; false where it is absent.

    Raises:
        SourceError: it is neither.
    """
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise SourceError(f"config.json: {key} {_found(value)}", f"{key} must be true or false")
    return value


def _found(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge number"
    return "is missing" if value is None else f"is {text[:80]}"


def _whole(config: Config, key: str) -> int | None:
    return positive(config, key) if config.get(key) is not None else None
