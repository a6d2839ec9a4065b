"""Quantization of a model to one or more files: plan, check, write in one read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.engine.outputs import Output, check_outputs
from mconv.convert.engine.run import OnProgress, Progress, run
from mconv.convert.errors import DiskError, UsageError
from mconv.convert.layouts.gguf.form import GgufForm, open_form
from mconv.convert.layouts.layout import ReadOptions
from mconv.convert.tensors.block_types import find_block_type
from mconv.quantize.assign import TypeOptions
from mconv.quantize.filetypes import find_file_type
from mconv.quantize.imatrix import read_imatrix
from mconv.quantize.overrides import parse_override
from mconv.quantize.plan import QuantizationPlan, file_stem, plan_quantization
from mconv.quantize.surroundings import prepare_kernels, warn_of

if TYPE_CHECKING:
    from mconv.convert.engine.local import Executor


@dataclass(frozen=True)
class Quantization:
    """What is written where.

    Attributes:
        form: the source.
        plans: one plan per file type.
        paths: the file of each plan.
        inputs: the files that are read.
    """

    form: GgufForm
    plans: tuple[QuantizationPlan, ...]
    paths: tuple[Path, ...]
    inputs: tuple[Path, ...]

    @property
    def stem(self) -> str:
        """The name of the model in its file names."""
        return file_stem(self.form)

    def outputs(self) -> list[Output]:
        """The plans and their paths."""
        return [Output(plan.plan, path) for plan, path in zip(self.plans, self.paths, strict=True)]

    def check(self, *, overwrite: bool = False) -> None:
        """Create the output folder, and reject outputs that cannot be written; see `check_outputs`."""
        for folder in {path.parent for path in self.paths}:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise DiskError(f"{folder} is not a folder", "choose another output folder") from error
        check_outputs(self.outputs(), self.inputs, overwrite=overwrite)

    def run(
        self,
        *,
        executor: Executor | None = None,
        overwrite: bool = False,
        keep_partial: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Progress:
        """Write every file; see `engine.run.run`."""
        prepare_kernels(self.plans)
        return run(
            self.outputs(), executor=executor, overwrite=overwrite, keep_partial=keep_partial, on_progress=on_progress
        )

    def warn(self) -> None:
        """Warn about tensors that do not get the type of their mixture, or have no importance values."""
        for plan in self.plans:
            warn_of(plan)


def plan_quantizations(
    source: Path,
    types: Sequence[str],
    *,
    output: Path | None = None,
    output_dir: Path | None = None,
    imatrix: Path | None = None,
    tensor_types: Sequence[str] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    pure: bool = False,
    allow_requantize: bool = False,
    reading: ReadOptions | None = None,
) -> Quantization:
    """Plan every byte of a model's quantized files, without reading any weights.

    Args:
        source: a checkpoint of any layout.
        types: file types, such as Q4_K_M; duplicates are ignored.
        output: the path of the file, for a single type.
        output_dir: folder for the files, which are named STEM-TYPE.gguf.
        imatrix: importance matrix, in GGUF or .dat format.
        tensor_types: REGEX=TYPE, for the tensors whose names match.
        output_tensor_type, token_embedding_type: types of these two.
        pure: give every tensor the file type's default type.
        allow_requantize: accept a source that is quantized already.
        reading: read options of the source's layout, see `open_checkpoint`.

    Raises:
        UsageError: options contradict each other or match nothing, or a type is unknown.
        SourceError, FormatError, MappingError: the source or the importance matrix cannot be read.
        QuantizationError: see `plan_quantization`.
    """
    file_types = list(dict.fromkeys(find_file_type(name) for name in types))
    options = TypeOptions(
        overrides=tuple(parse_override(text) for text in tensor_types),
        output_tensor_type=find_block_type(output_tensor_type) if output_tensor_type else None,
        token_embedding_type=find_block_type(token_embedding_type) if token_embedding_type else None,
        pure=pure,
    )
    if output and (output_dir or len(file_types) > 1):
        raise UsageError("--output names a single file", "use --output-dir for several types")
    matrix = read_imatrix(imatrix) if imatrix else None
    form = open_form(source, **(reading or {}))
    plans = tuple(
        plan_quantization(form, file_type, options, matrix, allow_requantize=allow_requantize)
        for file_type in file_types
    )
    folder, stem = output_dir or Path(), file_stem(form)
    paths = tuple(output or folder / f"{stem}-{plan.file_type.name}.gguf" for plan in plans)
    return Quantization(form, plans, paths, (*form.files, *([imatrix] if imatrix else [])))
