"""The GGUF layout: a model's spec as metadata, its tensors as targets, and the plan of a float file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from mconv.convert.containers.gguf import lay_out
from mconv.convert.engine.plan import Plan, TypedTarget
from mconv.convert.families import family_named
from mconv.convert.families.table import gguf_targets
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.model.metadata import Metadata, float32, string, uint32
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.nodes import ConstantTensor
from mconv.convert.tensors.rows import Rows, Target

# ggml.h, GGML_QNT_VERSION.
QUANTIZATION_VERSION = 2

SLIDING_WINDOW = "mconv.attention.sliding_window"
"""Tokens of a sliding window: the architectures of these models have no key for it, as llama.cpp has no use for it."""

FILE_TYPES = {BlockType.F32: 0, BlockType.F16: 1, BlockType.Q8_0: 7, BlockType.BF16: 32}
"""`general.file_type` of the types that a conversion can write (llama.h, `llama_ftype`)."""


def plan_conversion(checkpoint: Checkpoint, targets: Sequence[Target], kind: BlockType) -> Plan:
    """The plan of a GGUF file whose matrices all have one type.

    Args:
        checkpoint: the source.
        targets: its `model_targets`.
        kind: F32, F16, BF16 or Q8_0; a matrix whose rows are not whole Q8_0 blocks becomes F16.
    """
    metadata = model_metadata(checkpoint, FILE_TYPES[kind])
    return lay_out(metadata, [TypedTarget(target, _conversion_type(target, kind).name) for target in targets])


def source_type(targets: Sequence[Target]) -> BlockType:
    """The type that a conversion writes when it is not told: the 16-bit type of the first matrix that has one.

    A float32 checkpoint becomes F16, as the field's converters have it.
    """
    kinds = (target.rows.dtype for target in targets if len(target.shape) > 1)
    return BlockType[next((kind for kind in kinds if kind != "F32"), "F16")]


def model_targets(checkpoint: Checkpoint) -> list[Target]:
    """Every tensor of the GGUF form, in the order of the source."""
    spec = checkpoint.spec
    targets = gguf_targets(family_named(spec.family), spec, checkpoint.tensors)
    factors = rope_factors(spec)
    if factors is None:
        return targets
    rows = Rows((ConstantTensor.of("rope_freqs.weight", factors),))
    return [Target("rope_freqs.weight", factors.shape, rows), *targets]


def stays_float32(target: Target) -> bool:
    """Whether a tensor is F32 in every GGUF file: vectors, norms and the router of a mixture of experts."""
    return (
        len(target.shape) == 1
        or target.name.endswith("_norm.weight")
        or target.name.endswith("ffn_gate_inp.weight")
        or not target.name.endswith(".weight")
    )


def not_carried(spec: ModelSpec) -> Iterable[str]:
    """What llama.cpp does not do as the model does, each in a sentence."""
    if spec.sliding_window is not None and spec.sliding_window < spec.context:
        yield (
            f"sliding-window attention ({spec.sliding_window} tokens) has no place in this GGUF architecture: "
            f"llama.cpp attends to the whole context, and only mconv reads {SLIDING_WINDOW}"
        )


def _conversion_type(target: Target, kind: BlockType) -> BlockType:
    if stays_float32(target):
        return BlockType.F32
    return kind if kind.fits(target.shape[-1]) else BlockType.F16


def model_metadata(checkpoint: Checkpoint, file_type: int) -> Metadata:
    """All key-value pairs of the file: provenance, hyperparameters, vocabulary."""
    spec = checkpoint.spec
    architecture = spec.gguf_architecture
    metadata: Metadata = {"general.architecture": string(architecture), **checkpoint.provenance}
    metadata |= {f"{architecture}.{key}": value for key, value in hyperparameters(spec).items()}
    if spec.sliding_window is not None:
        metadata[SLIDING_WINDOW] = uint32(spec.sliding_window)
    metadata["general.file_type"] = uint32(file_type)
    metadata["general.quantization_version"] = uint32(QUANTIZATION_VERSION)
    return metadata | checkpoint.vocabulary().metadata()


def hyperparameters(spec: ModelSpec) -> Metadata:
    """A spec as metadata: keys without their architecture prefix (llama.cpp src/llama-arch.cpp, `LLM_KV_NAMES`)."""
    metadata: Metadata = {
        "block_count": uint32(spec.layers),
        "context_length": uint32(spec.context),
        "embedding_length": uint32(spec.hidden),
        "feed_forward_length": uint32(spec.ffn),
        "attention.head_count": uint32(spec.heads),
        "attention.head_count_kv": uint32(spec.kv_heads),
        **_rope(spec),
        "attention.layer_norm_rms_epsilon": float32(spec.rms_norm_eps),
    }
    if spec.experts:
        metadata["expert_count"] = uint32(spec.experts)
        metadata["expert_used_count"] = uint32(spec.experts_per_token)
    if spec.states_head_dim:
        metadata["attention.key_length"] = uint32(spec.head_dim)
        metadata["attention.value_length"] = uint32(spec.head_dim)
    metadata["vocab_size"] = uint32(spec.vocab)
    metadata["rope.dimension_count"] = uint32(spec.head_dim)
    if spec.attention_temperature_scale is not None:
        metadata["attention.temperature_scale"] = float32(spec.attention_temperature_scale)
    return metadata


def _rope(spec: ModelSpec) -> Metadata:
    rope = spec.rope
    metadata: Metadata = {}
    if rope.type in ("linear", "yarn"):
        metadata["rope.scaling.type"] = string(rope.type)
        metadata["rope.scaling.factor"] = float32(rope.factor or 1.0)
    if rope.type == "yarn":
        metadata["rope.scaling.original_context_length"] = uint32(rope.original_context or 0)
        optional = {
            "yarn_ext_factor": rope.extrapolation_factor,
            "yarn_attn_factor": rope.attention_factor,
            "yarn_beta_fast": rope.beta_fast,
            "yarn_beta_slow": rope.beta_slow,
            # Only mistral3's graph in llama.cpp reads the multiplier; the others take their attention factor from the
            # factor.
            "yarn_log_multiplier": rope.mscale_all_dim if spec.attention_temperature_scale is not None else None,
        }
        metadata |= {f"rope.scaling.{key}": float32(value) for key, value in optional.items() if value is not None}
    metadata["rope.freq_base"] = float32(rope.theta)
    return metadata


def rope_factors(spec: ModelSpec) -> np.ndarray | None:
    """Llama 3's divisor of each rotary frequency, float32 (head_dim / 2,); None for every other kind of scaling.

    Short wavelengths stay, long ones are divided by the factor, those between are blended: `_compute_llama3_parameters`
    of transformers (modeling_rope_utils.py). Each step is one float32 operation, in the order in which llama.cpp's
    converter has torch compute it; the power alone is correctly rounded here, where torch's depends on the machine.
    """
    rope = spec.rope
    if rope.type != "llama3" or rope.factor is None or rope.original_context is None:
        return None
    # An absurd theta overflows here; the comparisons choose all the same.
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
