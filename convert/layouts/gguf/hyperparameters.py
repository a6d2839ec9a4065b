"""A spec as the keys of a GGUF file, without the architecture prefix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mconv.convert.model.fields import (
    ATTENTION_TEMPERATURE_SCALE,
    CONTEXT,
    EXPERTS,
    EXPERTS_PER_TOKEN,
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    RMS_NORM_EPS,
    ROPE_ATTENTION_FACTOR,
    ROPE_BETA_FAST,
    ROPE_BETA_SLOW,
    ROPE_EXTRAPOLATION_FACTOR,
    ROPE_FACTOR,
    ROPE_MSCALE_ALL_DIM,
    ROPE_ORIGINAL_CONTEXT,
    ROPE_THETA,
    ROPE_TYPE,
    SLIDING_WINDOW,
    VOCAB,
    Field,
    Kind,
)
from mconv.convert.model.metadata import Metadata, Value, float32, string, uint32
from mconv.convert.model.spec import ModelSpec

SCALINGS = ("linear", "yarn")
"""The types of rotary scaling that have keys; Llama 3's is stored as a tensor of factors."""

# In the order of a file that llama.cpp's converter writes.
_SCALING_KEYS = (
    ROPE_FACTOR,
    ROPE_ORIGINAL_CONTEXT,
    ROPE_EXTRAPOLATION_FACTOR,
    ROPE_ATTENTION_FACTOR,
    ROPE_BETA_FAST,
    ROPE_BETA_SLOW,
    ROPE_MSCALE_ALL_DIM,
)


def hyperparameters(spec: ModelSpec) -> Metadata:
    """A spec as metadata, in the order of the file; see `full_key`."""
    *lengths, rotated = HEAD_DIM.gguf
    return {
        **_keys(spec, LAYERS, CONTEXT, HIDDEN, FFN, HEADS, KV_HEADS),
        **_rope(spec),
        **_keys(spec, RMS_NORM_EPS),
        **(_keys(spec, EXPERTS, EXPERTS_PER_TOKEN) if spec.experts else {}),
        **({key: uint32(spec.head_dim) for key in lengths} if spec.states_head_dim else {}),
        **_keys(spec, VOCAB),
        rotated: uint32(spec.head_dim),
        **_keys(spec, ATTENTION_TEMPERATURE_SCALE, SLIDING_WINDOW),
    }


def _rope(spec: ModelSpec) -> Metadata:
    metadata: Metadata = {}
    if spec.rope.type in SCALINGS:
        metadata |= _keys(spec, ROPE_TYPE)
        for field in _SCALING_KEYS:
            # In llama.cpp only the mistral3 graph reads the multiplier; the others derive the attention factor from the
            # scaling factor.
            is_read = field is not ROPE_MSCALE_ALL_DIM or spec.attention_temperature_scale is not None
            if spec.rope.type in field.scalings and is_read:
                metadata |= _keys(spec, field)
    return metadata | _keys(spec, ROPE_THETA)


def _keys(spec: ModelSpec, *fields: Field) -> Metadata:
    """The values of these fields in a spec; fields without a value are left out."""
    known = ((field, field.value(spec)) for field in fields)
    return {key: _value(field, value) for field, value in known if value is not None for key in field.gguf}


def _value(field: Field, value: Any) -> Value:
    if field.kind is Kind.TEXT:
        return string(value)
    return uint32(value) if field.kind is Kind.COUNT else float32(value)


def rope_factors(spec: ModelSpec) -> np.ndarray | None:
    """Llama 3's divisor of each rotary frequency, float32 (head_dim / 2,); None for any other kind of scaling.

    Short wavelengths are kept, long ones are divided by the factor, and those between are interpolated, as in
    `_compute_llama3_parameters` of transformers (modeling_rope_utils.py). Each step is one float32 operation, in the
    same order as in llama.cpp's converter, which uses torch; only the power is correctly rounded here, while torch's
    depends on the machine.
    """
    rope = spec.rope
    if rope.type != "llama3" or rope.factor is None or rope.original_context is None:
        return None
    # A huge theta overflows here; the comparisons below still work.
    with np.errstate(all="ignore"):
        one, context = np.float32(1), np.float32(rope.original_context)
        low, high = np.float32(rope.low_freq_factor), np.float32(rope.high_freq_factor)
        exponents = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
        frequencies = one / np.power(rope.theta, exponents.astype(np.float64)).astype(np.float32)
        wavelengths = one / frequencies * np.float32(2 * math.pi)
        smooth = (one / wavelengths * context - low) / (high - low)
        blended = one / ((one - smooth) / np.float32(rope.factor) + smooth)
        factors = np.where(wavelengths < context / high, one, blended)
        return np.where(wavelengths > context / low, np.float32(rope.factor), factors).astype(np.float32)
