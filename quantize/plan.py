"""The plan of one quantized file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from mconv.convert.containers.gguf import lay_out
from mconv.convert.engine.plan import Plan, TypedTarget
from mconv.convert.errors import QuantizationError
from mconv.convert.layouts.gguf.writer import QUANTIZATION_VERSION
from mconv.convert.model.metadata import Metadata, uint32
from mconv.convert.tensors.rows import Target
from mconv.quantize.assign import Assignment, TypeOptions, assign_types, check_importance
from mconv.quantize.filetypes import FileType
from mconv.quantize.imatrix import ImportanceMatrix
from mconv.quantize.source import Source


@dataclass(frozen=True)
class QuantizationPlan:
    """A quantized file that is not written yet, and what is worth saying of it.

    Attributes:
        file_type: what was asked for.
        plan: the file.
        metadata, alignment: what its header was made from, for who lays it out in another way.
        fallbacks: tensors whose rows do not fit the type that the mixture gives them.
        missing_imatrix: tensors that the importance matrix knows nothing of.
    """

    file_type: FileType
    plan: Plan
    metadata: Metadata = field(repr=False)
    alignment: int
    fallbacks: tuple[Assignment, ...]
    missing_imatrix: tuple[str, ...]

    def describe_fallbacks(self) -> list[dict[str, Any]]:
        """JSON-ready: tensor, the type it should have, the type it gets."""
        return [
            {"tensor": fallback.tensor.name, "wanted": fallback.wanted.name, "type": fallback.type.name}
            for fallback in self.fallbacks
        ]


def plan_quantization(
    source: Source,
    file_type: FileType,
    options: TypeOptions,
    matrix: ImportanceMatrix | None,
    *,
    allow_requantize: bool,
) -> QuantizationPlan:
    """Decide the type and the place of every tensor.

    Raises:
        UsageError: an override matches nothing.
        QuantizationError: a type that does not fit, needs an importance matrix, or would be quantized a second time.
    """
    assignments = assign_types(source.tensors, source.model, file_type, options, matrix is not None)
    if not allow_requantize:
        _refuse_requantizing(assignments.values())
    missing = check_importance(assignments.values(), matrix)
    metadata = {
        **source.metadata,
        "general.quantization_version": uint32(QUANTIZATION_VERSION),
        "general.file_type": uint32(file_type.number),
        **(matrix.metadata() if matrix else {}),
    }
    typed = [_typed(source.targets[name], assignment, matrix) for name, assignment in assignments.items()]
    return QuantizationPlan(
        file_type=file_type,
        plan=lay_out(metadata, typed, source.alignment),
        metadata=metadata,
        alignment=source.alignment,
        fallbacks=tuple(assignment for assignment in assignments.values() if assignment.is_fallback),
        missing_imatrix=tuple(missing),
    )


def _typed(target: Target, assignment: Assignment, matrix: ImportanceMatrix | None) -> TypedTarget:
    weighs = matrix is not None and assignment.type.uses_importance and not assignment.is_copy
    importance = matrix.importance_of(target.name, target.shape) if weighs and matrix else None
    return TypedTarget(target, assignment.type.name, importance)


def _refuse_requantizing(assignments: Collection[Assignment]) -> None:
    for assignment in assignments:
        if assignment.tensor.type.is_quantized and not assignment.is_copy:
            raise QuantizationError(
                f"{assignment.tensor.name} is {assignment.tensor.type.name} already; quantizing it again loses much",
                "start from the 16-bit model, or give mquant --allow-requantize",
            )
