"""Compare the hyperparameters of an artifact with its reference, except those that a layout cannot store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mconv.convert.layouts.gguf.architecture import ARCHITECTURES, full_key
from mconv.convert.layouts.gguf.hyperparameters import hyperparameters, rope_factors
from mconv.convert.model.fields import (
    ATTENTION_BIAS,
    CONTEXT,
    FIELDS,
    MLP_BIAS,
    ROPE_BETA_FAST,
    ROPE_BETA_SLOW,
    ROPE_EXTRAPOLATION_FACTOR,
    ROPE_FACTOR,
    ROPE_FIELDS,
    ROPE_MSCALE_ALL_DIM,
    ROPE_THETA,
    ROPE_TYPE,
    SLIDING_WINDOW,
    STATES_HEAD_DIM,
    TIED,
    Field,
)
from mconv.convert.model.metadata import Metadata
from mconv.convert.model.spec import ModelSpec
from mconv.validate.findings import Finding, Severity

_WARNED = (CONTEXT, SLIDING_WINDOW)
"""Fields that do not affect the model within the context of the reference."""

_FOLLOWS = (TIED, ATTENTION_BIAS, MLP_BIAS, SLIDING_WINDOW)
"""Fields without a GGUF key that all writers use; most of them follow from the tensors in the file."""

_ASSUMED = {ROPE_FACTOR: 1.0, ROPE_BETA_FAST: 32.0, ROPE_BETA_SLOW: 1.0, ROPE_EXTRAPOLATION_FACTOR: 1.0}
"""Defaults of transformers and llama.cpp for missing values."""

_KEYS = {key: field for field in FIELDS for key in field.gguf}


def compare_specs(found: ModelSpec, reference: ModelSpec, *, folders: bool) -> Iterator[Finding]:
    """The differences between two specs.

    Numbers are equal if they are the same float32, which is the type in GGUF. A difference that does not affect the
    model within the context of the reference is a warning.

    Args:
        folders: whether neither is a GGUF file, which may omit the sliding window.
    """
    for field in FIELDS:
        if field is STATES_HEAD_DIM or field in ROPE_FIELDS or (field in _FOLLOWS and not folders):
            continue
        values = (field.value(found), field.value(reference))
        if field is SLIDING_WINDOW:
            values = (_window(found), _window(reference))
        yield from _compare(field.name, *values, _severity(field))
    ours, theirs = (ARCHITECTURES.get(spec.family) for spec in (found, reference))
    yield from _compare("gguf_architecture", ours, theirs, "warn")
    yield from _compare_ropes(found, reference)


def compare_keys(metadata: Metadata, reference: ModelSpec) -> list[Finding]:
    """The same for a GGUF file whose keys do not form a valid spec, key by key; missing keys are skipped."""
    architecture = metadata.get("general.architecture")
    told: set[str] = set()
    findings: list[Finding] = []
    for key, expected in hyperparameters(reference).items():
        field = _KEYS[key]
        value = metadata.get(full_key(key, str(architecture.content))) if architecture else None
        if value is not None and field.name not in told:
            found = list(_compare(field.name, value.content, expected.content, _severity(field)))
            told |= {finding.subject for finding in found}
            findings += found
    return findings


def _severity(field: Field) -> Severity:
    return "warn" if field in _WARNED else "fail"


def _compare(name: str, found: Any, reference: Any, severity: Severity = "fail") -> Iterator[Finding]:
    if not _same(found, reference):
        what = f"{name}: {_shown(found)}, but the reference has {_shown(reference)}"
        yield Finding("weights", "hyperparameter", name, what, severity)


def _same(found: Any, reference: Any) -> bool:
    if isinstance(found, float) and isinstance(reference, float):
        with np.errstate(over="ignore"):
            return bool(np.float32(found) == np.float32(reference))
    return bool(found == reference)


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)[:80]


def _window(spec: ModelSpec) -> int | None:
    """The sliding window, if it is shorter than the context."""
    return spec.sliding_window if spec.sliding_window and spec.sliding_window < spec.context else None


def _compare_ropes(found: ModelSpec, reference: ModelSpec) -> Iterator[Finding]:
    for field in (ROPE_THETA, ROPE_TYPE):
        yield from _compare(field.name, field.value(found), field.value(reference))
    if found.rope.type != reference.rope.type:
        return
    if found.rope.type == "llama3":
        # A GGUF file has only the divisors, which can also result from other parameters.
        ours, theirs = rope_factors(found), rope_factors(reference)
        if ours is not None and theirs is not None and ours.shape == theirs.shape and np.allclose(ours, theirs, 1e-5):
            return
    for field in ROPE_FIELDS:
        # Without temperature scaling llama.cpp does not use the multiplier, and a GGUF file does not contain it.
        is_used = field is not ROPE_MSCALE_ALL_DIM or reference.attention_temperature_scale is not None
        if reference.rope.type in field.scalings and is_used:
            yield from _compare(field.name, _assumed(field, found), _assumed(field, reference))


def _assumed(field: Field, spec: ModelSpec) -> Any:
    value = field.value(spec)
    return _ASSUMED.get(field) if value is None else value
