"""The functions of the package: the commands, for use in programs.

Options have the same names as on the command line. Nothing is printed: results are values, notes go to a `Listener`,
and failures are errors of `mconv.errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.reporting import Listener, listening, note

if TYPE_CHECKING:
    from mconv.convert.conversion import Conversion
    from mconv.convert.engine.local import Executor
    from mconv.convert.engine.run import OnProgress, Progress
    from mconv.convert.model.checkpoint import Checkpoint
    from mconv.convert.summary import Summary
    from mconv.quantize.quantization import Quantization

PathLike = str | Path
"""A path; for a source, also ORGANIZATION/NAME[@REVISION] on the Hugging Face Hub."""


def open(source: PathLike, **options: Any) -> Checkpoint:
    """Open a checkpoint of any layout. Only headers and configuration are read.

    Args:
        source: a Hugging Face folder, a Megatron-Core checkpoint, a GGUF file, or a model on the Hub.
        options: read options of its layout, such as `hf_config` for Megatron.

    Raises:
        SourceError, FormatError, MappingError: it cannot be opened.
        UsageError: its layout does not have an option.

    Example:
        >>> checkpoint = mconv.open("examples/tiny-mistral")
        >>> checkpoint.layout, checkpoint.spec.layers, len(checkpoint.tensors)
        ('hf', 8, 75)
    """
    from mconv.convert.hub import resolve_source
    from mconv.convert.layouts import open_checkpoint

    return open_checkpoint(resolve_source(Path(source)), **options)


def inspect(source: PathLike | Checkpoint, **options: Any) -> Summary:
    """Describe a checkpoint, like `mconv inspect`, without reading any weights.

    Args:
        source: see `open`; or an open checkpoint.
        options: see `open`.

    Raises:
        SourceError, FormatError, MappingError, UsageError: see `open`; the vocabulary cannot be read.

    Example:
        >>> summary = mconv.inspect("examples/tiny-mistral")
        >>> summary.family, summary.size_label, summary.types
        ('llama', '7.3M', {'BF16': 75})
    """
    from mconv.convert.summary import summarize

    return summarize(_opened(source, options))


def plan(source: PathLike | Checkpoint, to: str, output: PathLike, **options: Any) -> Conversion:
    """Plan every byte of a checkpoint in another layout, without reading any weights.

    The result is plain data: it can be pickled, and `run` can write it in this process or another.

    Args:
        source: see `open`; or an open checkpoint.
        to: the name of the layout: "hf", "gguf" or "megatron".
        output: the file or folder to write.
        options: read options of the source layout, and write options of the target layout: `outtype` for GGUF, `dtype`
            for Hugging Face and Megatron, `max_shard_size` for Hugging Face.

    Raises:
        UsageError: neither layout has an option, or its value is not valid.
        SourceError, FormatError, MappingError, QuantizationError: the checkpoint cannot be converted to this layout.

    Example:
        >>> planned = mconv.plan("examples/tiny-mistral", "gguf", "tiny.gguf", outtype="f16")
        >>> planned.planned.plan.size, planned.planned.main_type
        (14746592, 'F16')
    """
    from mconv.convert.conversion import plan_conversion
    from mconv.convert.layouts import find_layout

    layout = find_layout(to)
    writing = {name: value for name, value in options.items() if layout.writes_with(name)}
    reading = {name: value for name, value in options.items() if name not in writing}
    return plan_conversion(_opened(source, reading), layout, Path(output), **writing)


def run(
    planned: Conversion | Quantization,
    *,
    threads: int | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
    keep_partial: bool = False,
    on_progress: OnProgress | None = None,
) -> Progress:
    """Write a planned output completely, or not at all. Continues an earlier run of the same plan.

    Args:
        planned: the result of `plan`.
        threads: number of threads; None uses every usable core.
        executor: runs the work instead of threads.
        overwrite: replace an existing output.
        keep_partial: after a KeyboardInterrupt, keep the partial output, to be continued.
        on_progress: called at the start, and then after each task.

    Returns:
        How much was written, and how much of that by an earlier run.

    Raises:
        UsageError, DiskError: an output exists, is an input, or does not fit on the disk.
        SourceError: a weight is not finite, or a source is truncated or changed during the run.
        QuantizationError: a value is outside the range of its type.
        OSError: writing failed.

    Example:
        >>> planned = mconv.plan("examples/tiny-mistral", "gguf", folder / "tiny.gguf")
        >>> mconv.run(planned).done
        14697472
    """
    from mconv.convert.engine.local import LocalExecutor

    planned.check(overwrite=overwrite)
    return planned.run(
        executor=executor or LocalExecutor(threads),
        overwrite=overwrite,
        keep_partial=keep_partial,
        on_progress=on_progress,
    )


@dataclass(frozen=True)
class QuantizedFile:
    """A file that `quantize` wrote.

    Attributes:
        path: the file.
        type: its file type, such as Q4_K_M.
        bytes: its size.
        bits_per_weight: bits of tensor data per weight.
        fallbacks: tensors with another type than the mixture gives them, since their rows are not whole blocks.
        missing_imatrix: tensors that are missing from the importance matrix.
    """

    path: Path
    type: str
    bytes: int
    bits_per_weight: float
    fallbacks: tuple[str, ...]
    missing_imatrix: tuple[str, ...]


def quantize(
    source: PathLike,
    types: str | Sequence[str],
    *,
    output: PathLike | None = None,
    output_dir: PathLike | None = None,
    imatrix: PathLike | None = None,
    tensor_types: Sequence[str] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    pure: bool = False,
    allow_requantize: bool = False,
    threads: int | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
    keep_partial: bool = False,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], object] | None = None,
    **reading: Any,
) -> tuple[QuantizedFile, ...]:
    """Quantize a model to any number of types in one read, byte for byte like llama-quantize.

    Args:
        source: see `open`.
        types: a file type, such as "Q4_K_M", or several.
        output, output_dir, imatrix, tensor_types, output_tensor_type, token_embedding_type, pure, allow_requantize:
            see `mquant --help`; `tensor_types` are the REGEX=TYPE of `--tensor-type`.
        threads, executor, overwrite, keep_partial, on_progress: see `run`.
        on_note: called with each line that is worth knowing.
        reading: read options of the source's layout, see `open`.

    Returns:
        One file per type, in the given order.

    Raises:
        UsageError, SourceError, FormatError, MappingError, QuantizationError: see `plan_quantizations`.
        DiskError, OSError: see `run`.

    Example:
        >>> files = mconv.quantize("examples/tiny-mistral", ["Q4_K_M", "Q6_K"], output_dir=folder)
        >>> [(file.path.name, file.bytes) for file in files]
        [('tiny-mistral-Q4_K_M.gguf', 4533216), ('tiny-mistral-Q6_K.gguf', 6087648)]
    """
    from mconv.convert.hub import resolve_source
    from mconv.quantize.quantization import plan_quantizations

    with _told(on_note):
        planned = plan_quantizations(
            resolve_source(Path(source)),
            [types] if isinstance(types, str) else types,
            output=_path(output),
            output_dir=_path(output_dir),
            imatrix=_path(imatrix),
            tensor_types=tensor_types,
            output_tensor_type=output_tensor_type,
            token_embedding_type=token_embedding_type,
            pure=pure,
            allow_requantize=allow_requantize,
            reading=reading,
        )
        for line in planned.form.notes:
            note(line)
        run(
            planned,
            threads=threads,
            executor=executor,
            overwrite=overwrite,
            keep_partial=keep_partial,
            on_progress=on_progress,
        )
        planned.warn()
    return tuple(
        QuantizedFile(
            path=path,
            type=each.file_type.name,
            bytes=each.plan.size,
            bits_per_weight=each.plan.bits_per_weight,
            fallbacks=tuple(fallback.tensor.name for fallback in each.fallbacks),
            missing_imatrix=each.missing_imatrix,
        )
        for each, path in zip(planned.plans, planned.paths, strict=True)
    )


@dataclass(frozen=True)
class GateResult:
    """The result of a gate for an artifact.

    Attributes:
        file: the artifact.
        gate: the name of the gate.
        status: "pass", "warn" or "fail".
        what: the reason, in one sentence.
    """

    file: str
    gate: str
    status: str
    what: str


@dataclass(frozen=True)
class Report:
    """The result of `validate`.

    Attributes:
        passed: whether no gate fails.
        gates: the result of each gate for each artifact.
        members: all measurements, in the form of `mval report --json`; see docs/reference/json.md.
    """

    passed: bool
    gates: tuple[GateResult, ...]
    members: dict[str, Any]


def validate(
    artifacts: PathLike | Sequence[PathLike],
    reference: PathLike,
    *,
    texts: Sequence[PathLike] = (),
    checks: Sequence[str] | None = None,
    gates: PathLike | None = None,
    imatrix: PathLike | None = None,
    ctx: int = 512,
    chunks: int | None = None,
    prompts: Sequence[str] | None = None,
    threads: int | None = None,
    on_note: Callable[[str], object] | None = None,
    **reading: Any,
) -> Report:
    """Compare artifacts with their reference, like `mval report`. A failed gate is not an error.

    Args:
        artifacts: a GGUF file, Hugging Face folder or Megatron folder, or several.
        reference: what they were made from: any of these.
        texts: files in UTF-8 for perplexity and KL divergence.
        checks: some of weights, tokens, template, perplexity, kl, generate; None for all.
        gates, imatrix, ctx, chunks, prompts, threads: see `mval report --help`.
        on_note: called with each line that is worth knowing.
        reading: read options of the layouts, see `open`.

    Raises:
        UsageError: a check is unknown, or needs a text and none is given.
        SourceError, FormatError, MappingError: an artifact or the reference cannot be read or run.

    Example:
        >>> (file,) = mconv.quantize("examples/tiny-mistral", "Q8_0", output_dir=folder)
        >>> report = mconv.validate(file.path, "examples/tiny-mistral", checks=["weights"])
        >>> report.passed, report.members["artifacts"][0]["type"]
        (True, 'Q8_0')
    """
    from mconv.convert.errors import UsageError
    from mconv.validate.findings import CHECKS
    from mconv.validate.report.make import PROMPTS, Request, make_report

    for name in checks or ():
        if name not in CHECKS:
            raise UsageError(f"{name!r} is not a check", f"the checks are {', '.join(CHECKS)}")
    request = Request(
        artifacts=[Path(artifacts)] if isinstance(artifacts, (str, Path)) else [Path(path) for path in artifacts],
        reference=Path(reference),
        texts=[Path(text) for text in texts],
        checks=[name for name in CHECKS if checks is None or name in checks],
        reading=reading,
        imatrix=_path(imatrix),
        ctx=ctx,
        chunks=chunks,
        prompts=PROMPTS if prompts is None else prompts,
        threads=threads,
    )
    with _told(on_note):
        report = make_report(request, _path(gates))
    results = tuple(
        GateResult(gate["file"], gate["gate"], gate["status"], gate["what"]) for gate in report["gates"]["results"]
    )
    return Report(report["passed"], results, report)


def _opened(source: PathLike | Checkpoint, options: dict[str, Any]) -> Checkpoint:
    if not isinstance(source, (str, Path)):
        from mconv.convert.errors import UsageError

        if options:
            raise UsageError(f"{min(options)} does not apply to an open checkpoint", "pass it to mconv.open")
        return source
    return open(source, **options)


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def _told(on_note: Callable[[str], object] | None) -> AbstractContextManager[None]:
    return nullcontext() if on_note is None else listening(Listener(note=on_note, warn=on_note))
