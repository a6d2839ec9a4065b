"""The GGUF files of a release: plan all types, write the missing ones in one read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.engine.local import LocalExecutor
from mconv.convert.engine.outputs import Output, check_outputs
from mconv.convert.engine.plan import Plan, TypedTarget
from mconv.convert.engine.progress import tell_progress
from mconv.convert.engine.run import run
from mconv.convert.layouts.gguf.split import part_name, plan_parts
from mconv.convert.reporting import note
from mconv.quantize.assign import TypeOptions
from mconv.quantize.filetypes import FileType
from mconv.quantize.plan import QuantizationPlan, plan_quantization
from mconv.quantize.surroundings import prepare_kernels, warn_of
from mconv.release.inputs import ReleaseInputs
from mconv.release.ledger import Ledger, Step
from mconv.release.recipe import Recipe
from mconv.release.versions import quantizing_versions

WEIGHTS = "weights"


@dataclass(frozen=True)
class TypeFiles:
    """The files of one type.

    Attributes:
        quantization: the quantization, as one file.
        parts: name to plan; several if the file is split.
    """

    quantization: QuantizationPlan
    parts: Mapping[str, Plan]

    @property
    def type(self) -> str:
        """Name of the type."""
        return self.quantization.file_type.name

    @property
    def first(self) -> str:
        """The file to give to a program."""
        return next(iter(self.parts))

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(plan.size for plan in self.parts.values())


def plan_types(recipe: Recipe, inputs: ReleaseInputs) -> list[TypeFiles]:
    """The files of every type of a recipe, in order.

    Raises:
        QuantizationError: a type does not fit, or needs an importance matrix.
        UsageError: see `plan_parts`.
    """
    return [
        _plan_type(
            recipe,
            plan_quantization(inputs.form, FileType[name], TypeOptions(), inputs.matrix, allow_requantize=False),
        )
        for name in recipe.types
    ]


def _plan_type(recipe: Recipe, planned: QuantizationPlan) -> TypeFiles:
    stem = f"{recipe.name}-{planned.file_type.name}"
    if planned.plan.size <= recipe.split_above:
        return TypeFiles(planned, {f"{stem}.gguf": planned.plan})
    typed = [TypedTarget(tensor.target, tensor.encoding, tensor.importance) for tensor in planned.plan.tensors]
    parts = plan_parts(planned.metadata, typed, planned.alignment, recipe.split_above)
    return TypeFiles(planned, {part_name(stem, number, len(parts)): part for number, part in enumerate(parts)})


def weights_step(files: TypeFiles, inputs: ReleaseInputs, ledger: Ledger, imatrix: Path | None) -> Step:
    """The step that makes the files of one type."""

    def decisive() -> Mapping[str, Any]:
        return {
            # Everything that depends on the configuration, the tokenizer and the card is in the headers.
            "headers": {name: plan.sha256 for name, plan in files.parts.items()},
            "weights": {name: ledger.digest(path).sha256 for name, path in inputs.weights.items()},
            "imatrix": ledger.digest(imatrix).sha256 if imatrix else None,
            "tools": quantizing_versions(),
        }

    return Step(f"{WEIGHTS} {files.type}", tuple(files.parts), decisive)


def write_weights(
    wanted: Sequence[tuple[TypeFiles, Step]],
    inputs: ReleaseInputs,
    ledger: Ledger,
    imatrix: Path | None,
    threads: int,
    *,
    keep_partial: bool = False,
) -> None:
    """Write the files of some types in one read of the source.

    Raises:
        DiskError: not enough disk space, or a file is in the way.
        SourceError, QuantizationError: see `run`.
    """
    plans = [files.quantization for files, _ in wanted]
    outputs = list(_outputs(wanted, ledger.folder))
    ledger.begin(*(step for _, step in wanted))
    check_outputs(outputs, [*inputs.files.values(), *([imatrix] if imatrix else [])], overwrite=True)
    prepare_kernels(plans)
    with tell_progress(inputs.stem) as on_progress:
        run(
            outputs,
            executor=LocalExecutor(threads),
            overwrite=True,
            keep_partial=keep_partial,
            on_progress=on_progress,
        )
    for plan in plans:
        warn_of(plan)
    for files, step in wanted:
        ledger.finish(step)
        note(f"{files.type} is built: {', '.join(files.parts)}")


def _outputs(wanted: Sequence[tuple[TypeFiles, Step]], folder: Path) -> Iterator[Output]:
    for files, _ in wanted:
        for name, plan in files.parts.items():
            yield Output(plan, folder / name)
