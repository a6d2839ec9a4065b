"""mval report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mconv.convert.cli.console import emit_json, emit_table
from mconv.convert.documents import json_text
from mconv.convert.errors import UsageError, ValidationError
from mconv.convert.layouts.layout import ReadOptions
from mconv.convert.reporting import format_bytes
from mconv.validate.commands.shared import (
    DEFAULT_CONTEXT,
    artifacts_argument,
    chunks_option,
    ctx_option,
    imatrix_option,
    one_line,
    path_type,
    prompt_option,
    read_options,
    reference_option,
    text_option,
    threads_option,
)
from mconv.validate.findings import CHECKS

_COLUMNS = ("file", "type", "size", "bits/weight", "perplexity", "mean KL", "99.9 %", "same top")


@click.command("report")
@artifacts_argument
@reference_option
@text_option()
@click.option("--gates", type=path_type, metavar="FILE.toml", help="Limits.  [default: by type, from published tables]")
@click.option("--skip", "skipped", multiple=True, metavar="CHECK", help=f"Leave out: {', '.join(CHECKS)}; repeatable.")
@prompt_option()
@imatrix_option
@ctx_option(default=DEFAULT_CONTEXT, show_default=True)
@chunks_option
@read_options
@threads_option
@click.option("--json", "json_file", type=path_type, metavar="OUT", help="Write the report as JSON; - for stdout.")
@click.option("--html", type=path_type, metavar="OUT", help="Write the report as an HTML page.")
def command(
    artifacts: tuple[Path, ...],
    reference: Path,
    texts: tuple[Path, ...],
    gates: Path | None,
    skipped: tuple[str, ...],
    prompts: tuple[str, ...],
    imatrix: Path | None,
    ctx: int,
    chunks: int | None,
    reading: ReadOptions,
    threads: int | None,
    json_file: Path | None,
    html: Path | None,
) -> None:
    """Run every check of artifacts against their reference, apply the gates, and write one report.

    Writes the report, then exits with code 1 if a gate fails.

    \b
    Examples:
      mval report gguf/*.gguf --reference model/ --text prose.txt --text code.txt --html report.html
      mval report model-Q4_K_M.gguf --reference model/ --skip kl --skip perplexity --json -
    """
    from mconv.validate.report.make import PROMPTS, Request, make_report
    from mconv.validate.report.output import check_outputs, write_output
    from mconv.validate.report.page import render_page

    skipped = tuple(name for word in skipped for name in word.split(","))
    for name in skipped:
        if name not in CHECKS:
            raise UsageError(f"--skip {name}: no such check", f"the checks are {', '.join(CHECKS)}")
    request = Request(
        artifacts=artifacts,
        reference=reference,
        texts=texts,
        checks=[name for name in CHECKS if name not in skipped],
        reading=reading,
        imatrix=imatrix,
        ctx=ctx,
        chunks=chunks,
        prompts=prompts or PROMPTS,
        threads=threads,
    )
    to_stdout = json_file == Path("-")
    wanted = ((html, render_page), (None if to_stdout else json_file, _json_file))
    outputs = [(path, render) for path, render in wanted if path]
    inputs = (*artifacts, reference, *texts, *filter(None, (gates, imatrix)))
    check_outputs([path for path, _ in outputs], inputs)
    report = make_report(request, gates)
    for path, render in outputs:
        write_output(path, render(report))
        click.echo(f"wrote {path}", err=True)
    if to_stdout:
        emit_json(report)
    else:
        _print(report)
    failed = [gate for gate in report["gates"]["results"] if gate["status"] == "fail"]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ValidationError(
            f"{failed[0]['file']}: {failed[0]['gate']} fails: {one_line(failed[0]['what'], 200)}{more}",
            "do not publish it; the report says what is wrong",
        )


def _json_file(report: dict[str, Any]) -> str:
    return json_text(report) + "\n"


def _print(report: Mapping[str, Any]) -> None:
    """Print one row per artifact, then each gate that does not pass."""
    from mconv.validate.report.summary import summarize, together

    rows = summarize(report)
    emit_table(
        (*_COLUMNS, *report["checks"], "verdict"),
        [
            (
                row["file"],
                row["type"],
                format_bytes(row["bytes"]),
                f"{row['bits_per_weight']:.2f}",
                *(_numbers(row["worst"]) if row["worst"] else ("", "", "", "")),
                *(row["checks"].get(check, "") for check in report["checks"]),
                row["status"],
            )
            for row in rows
        ],
    )
    doubtful = [gate for gate in report["gates"]["results"] if gate["status"] != "pass"]
    if doubtful:
        click.echo()
        emit_table(
            ("gate", "status", "what", "file"),
            [
                (gate["gate"], gate["status"], one_line(gate["what"], 300), ", ".join(gate["files"]))
                for gate in together(doubtful, "gate", "status", "what")
            ],
        )


def _numbers(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The numbers for the text with the largest mean KL divergence; NaN is shown as such."""

    def show(value: float | None, form: str) -> str:
        return "nan" if value is None else format(value, form)

    return (
        f"{show(row['perplexity'], '.4f')} +/- {show(row['perplexity_standard_error'], '.4f')}",
        f"{show(row['kl']['mean'], '.6f')} +/- {show(row['kl']['standard_error'], '.6f')}",
        show(row["kl"]["p99_9"], ".5f"),
        f"{show(100 * row['same_top'], '.3f')} %",
    )
