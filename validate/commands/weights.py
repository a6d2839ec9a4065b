"""mval weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mconv.convert.cli.console import emit_json, emit_table
from mconv.convert.layouts.layout import ReadOptions
from mconv.convert.reporting import format_bytes
from mconv.validate.commands.shared import (
    artifacts_argument,
    fail_on_findings,
    imatrix_option,
    json_option,
    print_findings,
    read_options,
    reference_option,
    threads_option,
)

if TYPE_CHECKING:
    from mconv.validate.weights.result import WeightsResult


@click.command("weights")
@artifacts_argument
@reference_option
@read_options
@imatrix_option
@threads_option
@json_option
def command(
    artifacts: tuple[Path, ...],
    reference: Path,
    reading: ReadOptions,
    imatrix: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare every tensor with that of the reference: byte for byte, or within the errors of its type.

    Runs no model: memory is bounded by a few chunks per thread, and the speed is about that of reading.

    \b
    Examples:
      mval weights model-Q4_K_M.gguf --reference Magistral-Small-2507
      mval weights model-*.gguf --reference model/ --imatrix imatrix.gguf --json
    """
    from mconv.quantize.imatrix import read_imatrix
    from mconv.validate.subject import open_subjects
    from mconv.validate.weights.compare import compare_weights

    for path in artifacts:
        path.stat()  # names the one that is missing, as any other error of the operating system does
    with open_subjects((reference, *artifacts), reading=reading) as (original, *subjects):
        matrix = read_imatrix(imatrix) if imatrix else None
        results = []
        for subject in subjects:
            with subject:
                results.append(compare_weights(subject, original, matrix=matrix, threads=threads))
    if as_json:
        emit_json({"results": [result.to_json() for result in results]})
    else:
        _print(results)
    found = [(str(result.file), finding) for result in results for finding in result.findings]
    fail_on_findings(found, "convert or quantize it again from the reference")


def _print(results: list[WeightsResult]) -> None:
    emit_table(
        ("file", "type", "tensors", "exact", "quantized", "different", "size", "relative RMSE", "worst", "tensor"),
        [
            (
                str(result.file),
                str(row.key),
                str(row.tensors),
                str(row.exact),
                str(row.quantized),
                str(row.different),
                format_bytes(row.bytes),
                f"{row.relative_rmse:.3g}",
                f"{row.worst_relative_rmse:.3g}",
                row.worst if row.worst_relative_rmse else "",
            )
            for result in results
            for row in result.by_type
        ],
    )
    for result in results:
        if result.findings:
            click.echo(f"\n{result.file}:")
        print_findings(result.findings)
