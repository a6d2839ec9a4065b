"""The command line of mquant."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mconv.convert.cli.console import emit_json, emit_table, run_command
from mconv.convert.cli.options import (
    dry_run_option,
    json_option,
    keep_partial_option,
    overwrite_option,
    path_type,
    read_options,
    threads_option,
)
from mconv.convert.cli.output import describe
from mconv.convert.cli.program import program
from mconv.convert.layouts.layout import ReadOptions
from mconv.convert.reporting import format_bytes, note

if TYPE_CHECKING:
    from mconv.convert.engine.outputs import Output
    from mconv.quantize.plan import QuantizationPlan


@program("mquant", click.Command)
@click.argument("source", type=path_type, metavar="SRC")
@click.option(
    "--type", "types", multiple=True, required=True, metavar="T", help="File type, such as Q4_K_M; repeatable."
)
@click.option("--output-dir", type=path_type, metavar="DIR", help="Folder for the files.  [default: .]")
@click.option("--output", type=path_type, metavar="FILE", help="Path of the file, for a single type.")
@click.option("--imatrix", type=path_type, metavar="FILE", help="Importance matrix (GGUF or .dat).")
@click.option(
    "--tensor-type",
    "overrides",
    multiple=True,
    metavar="REGEX=TYPE",
    help="Type of the tensors that match; repeatable.",
)
@click.option("--output-tensor-type", metavar="T", help="Type of output.weight.")
@click.option("--token-embedding-type", metavar="T", help="Type of token_embd.weight.")
@click.option("--pure", is_flag=True, help="Give every tensor the file type's default type: no mixture.")
@click.option("--allow-requantize", is_flag=True, help="Accept a source that is quantized already. Loses much quality.")
@read_options
@threads_option
@dry_run_option
@json_option
@overwrite_option
@keep_partial_option
def cli(
    source: Path,
    types: tuple[str, ...],
    output_dir: Path | None,
    output: Path | None,
    imatrix: Path | None,
    overrides: tuple[str, ...],
    output_tensor_type: str | None,
    token_embedding_type: str | None,
    pure: bool,
    allow_requantize: bool,
    reading: ReadOptions,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
    overwrite: bool,
    keep_partial: bool,
) -> None:
    """Quantize SRC, a Hugging Face folder, a Megatron checkpoint or a GGUF file, to one or more types in one read.

    Each file is named STEM-TYPE.gguf, and its tensors are identical to those of llama-quantize, byte for byte.

    \b
    Examples:
      mquant Mistral-7B-Instruct-v0.3/ --type Q4_K_M --type Q6_K --output-dir gguf/
      mquant model-bf16.gguf --type IQ4_XS --imatrix imatrix.gguf --output model-IQ4_XS.gguf
    """
    from mconv.convert.engine.local import LocalExecutor
    from mconv.convert.engine.progress import tell_progress
    from mconv.convert.hub import resolve_source
    from mconv.quantize.quantization import plan_quantizations

    quantization = plan_quantizations(
        resolve_source(source),
        types,
        output=output,
        output_dir=output_dir,
        imatrix=imatrix,
        tensor_types=overrides,
        output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        pure=pure,
        allow_requantize=allow_requantize,
        reading=reading,
    )
    for line in quantization.form.notes:
        note(line)
    if not dry_run:
        quantization.check(overwrite=overwrite)
        with tell_progress(quantization.stem) as on_progress:
            quantization.run(
                executor=LocalExecutor(threads),
                overwrite=overwrite,
                keep_partial=keep_partial,
                on_progress=on_progress,
            )
    quantization.warn()
    _report(quantization.plans, quantization.outputs(), as_json=as_json, dry_run=dry_run)


def _report(plans: Sequence[QuantizationPlan], outputs: Sequence[Output], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        emit_json(
            {
                "files": [
                    {
                        **describe(plan.plan, output.path, plan.file_type.name, dry_run),
                        "fallbacks": plan.describe_fallbacks(),
                        "missing_imatrix": list(plan.missing_imatrix),
                    }
                    for plan, output in zip(plans, outputs, strict=True)
                ]
            }
        )
        return
    if dry_run:
        _print_tensors(plans)
    emit_table(
        ["file", "type", "size", "bytes", "bits/weight", "fallbacks", "tensors"],
        (
            [
                str(output.path),
                plan.file_type.name,
                format_bytes(plan.plan.size),
                str(plan.plan.size),
                f"{plan.plan.bits_per_weight:.3f}",
                str(len(plan.fallbacks)),
                " ".join(f"{kind}:{count}" for kind, count in plan.plan.type_counts.items()),
            ]
            for plan, output in zip(plans, outputs, strict=True)
        ),
    )


def _print_tensors(plans: Sequence[QuantizationPlan]) -> None:
    """Print one row per tensor, one column per type."""
    described = [{row["name"]: row for row in plan.plan.describe_tensors()} for plan in plans]
    emit_table(
        ["tensor", "shape", *(plan.file_type.name for plan in plans)],
        (
            [
                name,
                "x".join(map(str, row["shape"])),
                *(f"{rows[name]['type']} {rows[name]['bytes']}" for rows in described),
            ]
            for name, row in described[0].items()
        ),
    )
    click.echo()


main = partial(run_command, cli)
"""Entry point of `mquant`."""

if __name__ == "__main__":
    main()
