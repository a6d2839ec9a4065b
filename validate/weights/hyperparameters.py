"""An artifact's hyperparameters against its reference's, as far as both of their layouts can hold them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mconv.convert.layouts.gguf.writer import hyperparameters, rope_factors
from mconv.convert.model.metadata import Metadata
from mconv.convert.model.spec import ModelSpec, Rope
from mconv.validate.findings import Finding, Severity

_FIELDS = (
    "layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "rms_norm_eps", "experts",
    "experts_per_token", "attention_temperature_scale",
)  # fmt: skip
# In a GGUF file these follow from the tensors that are there.
_FIELDS_OF_FOLDERS = ("tied", "attention_bias", "mlp_bias")
_KEYS = {
    "block_count": "layers",
    "context_length": "context",
    "embedding_length": "hidden",
    "feed_forward_length": "ffn",
    "attention.head_count": "heads",
    "attention.head_count_kv": "kv_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.temperature_scale": "attention_temperature_scale",
    "expert_count": "experts",
    "expert_used_count": "experts_per_token",
    "vocab_size": "vocab",
    "rope.freq_base": "rope.theta",
    "rope.dimension_count": "head_dim",
}
"""Keys of a GGUF file, less the architecture, and the fields that they become."""


def compare_specs(found: ModelSpec, reference: ModelSpec, *, folders: bool) -> Iterator[Finding]:
    """What differs between two specs.

    Numbers are the same if they are the same float32, which is what GGUF keeps. What does not change what a model
    computes within the reference's context is a warning.

    Args:
        folders: whether neither is from a GGUF file, which need not hold a sliding window.
    """
    for name in (*_FIELDS, *(_FIELDS_OF_FOLDERS if folders else ())):
        yield from _compare(name, getattr(found, name), getattr(reference, name))
    yield from _compare("context", found.context, reference.context, "warn")
    yield from _compare("gguf_architecture", found.gguf_architecture, reference.gguf_architecture, "warn")
    if folders:
        yield from _compare("sliding_window", _window(found), _window(reference), "warn")
    yield from _compare_ropes(found, reference)


def compare_keys(metadata: Metadata, reference: ModelSpec) -> list[Finding]:
    """The same for a GGUF file whose keys do not make a spec, one key by one; a key that is absent is passed over."""
    architecture = metadata.get("general.architecture")
    prefix = f"{architecture.content}." if architecture else ""
    told: set[str] = set()
    findings: list[Finding] = []
    for key, expected in hyperparameters(reference).items():
        value, name = metadata.get(prefix + key), _KEYS.get(key, key)
        if value is not None and name not in told:
            found = list(_compare(name, value.content, expected.content))
            told |= {finding.subject for finding in found}
            findings += found
    return findings


def _compare(name: str, found: Any, reference: Any, severity: Severity = "fail") -> Iterator[Finding]:
    if not _same(found, reference):
        what = f"{name}: {_shown(found)}, and the reference has {_shown(reference)}"
        yield Finding("weights", "hyperparameter", name, what, severity)


def _same(found: Any, reference: Any) -> bool:
    if isinstance(found, float) and isinstance(reference, float):
        with np.errstate(over="ignore"):
            return bool(np.float32(found) == np.float32(reference))
    return bool(found == reference)


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)[:80]


def _window(spec: ModelSpec) -> int | None:
    """The sliding window, where it is shorter than the context."""
    return spec.sliding_window if spec.sliding_window and spec.sliding_window < spec.context else None


def _compare_ropes(found: ModelSpec, reference: ModelSpec) -> Iterator[Finding]:
    yield from _compare("rope.theta", found.rope.theta, reference.rope.theta)
    yield from _compare("rope.type", found.rope.type, reference.rope.type)
    if found.rope.type != reference.rope.type:
        return
    if found.rope.type == "llama3":
        # A GGUF file has the divisors alone, which other parameters may lead to as well.
        ours, theirs = rope_factors(found), rope_factors(reference)
        if ours is not None and theirs is not None and ours.shape == theirs.shape and np.allclose(ours, theirs, 1e-5):
            return
    mine, expected = _scaling(found), _scaling(reference)
    for name, value in expected.items():
        yield from _compare(f"rope.{name}", mine[name], value)


def _scaling(spec: ModelSpec) -> dict[str, float | int | None]:
    """The parameters that the kind of scaling has, each with the value that transformers and llama.cpp assume."""
    rope: Rope = spec.rope
    if rope.type == "default":
        return {}
    parameters: dict[str, float | int | None] = {"factor": rope.factor or 1.0}
    if rope.type == "llama3":
        parameters |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.type == "yarn":
        parameters |= {
            "beta_fast": 32.0 if rope.beta_fast is None else rope.beta_fast,
            "beta_slow": 1.0 if rope.beta_slow is None else rope.beta_slow,
            "attention_factor": rope.attention_factor,
            "extrapolation_factor": 1.0 if rope.extrapolation_factor is None else rope.extrapolation_factor,
        }
        # Elsewhere llama.cpp has no use for it, and a GGUF file does not hold it.
        if spec.attention_temperature_scale is not None:
            parameters["mscale_all_dim"] = rope.mscale_all_dim
    if rope.type in ("llama3", "yarn"):
        parameters["original_context"] = rope.original_context
    return parameters
