"""Write the GGUF layout: a model's spec as metadata, its tensors as targets, and the plan of a float file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mconv.convert.containers.gguf import lay_out
from mconv.convert.engine.plan import Plan, TypedTarget
from mconv.convert.families import family_named
from mconv.convert.layouts.gguf.architecture import architecture_of, full_key
from mconv.convert.layouts.gguf.hyperparameters import hyperparameters, rope_factors
from mconv.convert.layouts.gguf.mapping import gguf_targets
from mconv.convert.layouts.gguf.names import name_of
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.model.fields import SLIDING_WINDOW
from mconv.convert.model.metadata import Metadata, string, uint32
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.nodes import ConstantTensor
from mconv.convert.tensors.rows import Rows, Target

# ggml.h, GGML_QNT_VERSION.
QUANTIZATION_VERSION = 2

FILE_TYPES = {BlockType.F32: 0, BlockType.F16: 1, BlockType.Q8_0: 7, BlockType.BF16: 32}
"""The `general.file_type` of each type that a conversion can write (llama.h, `llama_ftype`)."""


def plan_conversion(checkpoint: Checkpoint, targets: Sequence[Target], kind: BlockType) -> Plan:
    """The plan of a GGUF file whose matrices all have the same type.

    Args:
        checkpoint: the source.
        targets: its `model_targets`.
        kind: F32, F16, BF16 or Q8_0; a matrix whose rows are not whole blocks of Q8_0 becomes F16.
    """
    metadata = model_metadata(checkpoint, FILE_TYPES[kind])
    return lay_out(metadata, [TypedTarget(target, _conversion_type(target, kind).name) for target in targets])


def source_type(targets: Sequence[Target]) -> BlockType:
    """The default type of a conversion: the 16-bit type of the first matrix that has one.

    A float32 checkpoint becomes F16, as with other converters.
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
    name = name_of(Role.ROPE_FACTORS)
    rows = Rows((ConstantTensor.of(name, factors),))
    return [Target(name, factors.shape, rows, Role.ROPE_FACTORS), *targets]


def stays_float32(target: Target) -> bool:
    """Whether a tensor is F32 in every GGUF file: vectors, norms and the router of a mixture of experts."""
    return len(target.shape) == 1 or (target.role is not None and target.role.keeps_float32)


def not_carried(spec: ModelSpec) -> Iterable[str]:
    """What llama.cpp computes differently from the model, one sentence each."""
    if spec.sliding_window is not None and spec.sliding_window < spec.context:
        yield (
            f"sliding-window attention ({spec.sliding_window} tokens) is not supported by this GGUF architecture: "
            f"llama.cpp attends to the whole context, and only mconv reads {SLIDING_WINDOW.gguf[0]}"
        )


def _conversion_type(target: Target, kind: BlockType) -> BlockType:
    if stays_float32(target):
        return BlockType.F32
    return kind if kind.fits(target.shape[-1]) else BlockType.F16


def model_metadata(checkpoint: Checkpoint, file_type: int) -> Metadata:
    """All key-value pairs of the file: provenance, hyperparameters, vocabulary."""
    spec = checkpoint.spec
    architecture = architecture_of(spec.family)
    metadata: Metadata = {"general.architecture": string(architecture), **checkpoint.provenance}
    metadata |= {full_key(key, architecture): value for key, value in hyperparameters(spec).items()}
    metadata["general.file_type"] = uint32(file_type)
    metadata["general.quantization_version"] = uint32(QUANTIZATION_VERSION)
    return metadata | checkpoint.vocabulary().metadata()
