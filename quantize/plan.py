"""The plan of one quantized file."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from mconv.convert.containers.gguf import lay_out
from mconv.convert.engine.plan import Plan, TypedTarget
from mconv.convert.errors import MappingError, QuantizationError
from mconv.convert.layouts.gguf.form import GgufForm
from mconv.convert.layouts.gguf.writer import QUANTIZATION_VERSION
from mconv.convert.model.metadata import Metadata, uint32
from mconv.convert.model.provenance import folder_name
from mconv.convert.tensors.rows import Target
from mconv.quantize.assign import Assignment, SourceTensor, TypeOptions, assign_types, check_importance
from mconv.quantize.filetypes import FileType
from mconv.quantize.imatrix import ImportanceMatrix
from mconv.quantize.mixture import ModelFacts

# The rules of the mixtures are known only for these architectures.
_ARCHITECTURES = ("llama", "mistral3")
_PART_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")
# The type in the name of the source is replaced by the new one.
_TYPE_SUFFIX = re.compile(rf"[-._]({'|'.join(FileType.__members__)}|FP16|FP32)$", re.IGNORECASE)


def file_stem(form: GgufForm) -> str:
    """The start of the names of the quantized files: `model` for `model-BF16-00001-of-00002.gguf`."""
    if form.path.is_dir():
        return folder_name(form.path)
    return _TYPE_SUFFIX.sub("", _PART_SUFFIX.sub("", form.path.stem))


@dataclass(frozen=True)
class QuantizationPlan:
    """A quantized file that is not written yet, and information about it.

    Attributes:
        file_type: the requested file type.
        plan: the plan of the file.
        metadata, alignment: the input of its header, for callers that split the file.
        fallbacks: tensors whose rows do not fit the type that the mixture gives them.
        missing_imatrix: tensors that are missing from the importance matrix.
    """

    file_type: FileType
    plan: Plan
    metadata: Metadata = field(repr=False)
    alignment: int
    fallbacks: tuple[Assignment, ...]
    missing_imatrix: tuple[str, ...]

    def describe_fallbacks(self) -> list[dict[str, Any]]:
        """JSON-ready objects: tensor, wanted type, actual type."""
        return [
            {"tensor": fallback.tensor.name, "wanted": fallback.wanted.name, "type": fallback.type.name}
            for fallback in self.fallbacks
        ]


def plan_quantization(
    form: GgufForm,
    file_type: FileType,
    options: TypeOptions,
    matrix: ImportanceMatrix | None,
    *,
    allow_requantize: bool,
) -> QuantizationPlan:
    """Plan the type and offset of every tensor.

    Args:
        form: the model to quantize.

    Raises:
        MappingError: the mixtures for its architecture are not known.
        UsageError: an override matches nothing.
        QuantizationError: a type does not fit or requires an importance matrix, or a tensor is already quantized.
    """
    targets = {tensor.target.name: tensor.target for tensor in form.tensors}
    tensors = [SourceTensor(t.target.name, t.target.shape, t.type, t.target.role) for t in form.tensors]
    assignments = assign_types(tensors, _facts(form), file_type, options, matrix is not None)
    if not allow_requantize:
        _refuse_requantizing(assignments.values())
    missing = check_importance(assignments.values(), matrix)
    metadata = {
        **form.metadata,
        "general.quantization_version": uint32(QUANTIZATION_VERSION),
        "general.file_type": uint32(file_type.number),
        **(matrix.metadata() if matrix else {}),
    }
    typed = [_typed(targets[name], assignment, matrix) for name, assignment in assignments.items()]
    return QuantizationPlan(
        file_type=file_type,
        plan=lay_out(metadata, typed, form.alignment),
        metadata=metadata,
        alignment=form.alignment,
        fallbacks=tuple(assignment for assignment in assignments.values() if assignment.is_fallback),
        missing_imatrix=tuple(missing),
    )


def _facts(form: GgufForm) -> ModelFacts:
    if form.architecture not in _ARCHITECTURES:
        raise MappingError(
            f"{form.path.name}: architecture {form.architecture!r} is not supported",
            f"supported GGUF architectures: {', '.join(_ARCHITECTURES)}",
        )
    return ModelFacts(form.architecture, form.layers, form.heads, form.kv_heads, form.experts)


def _typed(target: Target, assignment: Assignment, matrix: ImportanceMatrix | None) -> TypedTarget:
    weighs = matrix is not None and assignment.type.uses_importance and not assignment.is_copy
    importance = matrix.importance_of(target.name, target.shape) if weighs and matrix else None
    return TypedTarget(target, assignment.type.name, importance)


def _refuse_requantizing(assignments: Collection[Assignment]) -> None:
    for assignment in assignments:
        if assignment.tensor.type.is_quantized and not assignment.is_copy:
            raise QuantizationError(
                f"{assignment.tensor.name} is already {assignment.tensor.type.name}; quantizing it again loses quality",
                "start from the 16-bit model, or pass --allow-requantize to mquant",
            )
