"""Shared by several commands of mval: arguments, options, notes, and the output of findings."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mconv.convert.cli.console import emit_table
from mconv.convert.cli.options import json_option, path_type, read_options, threads_option
from mconv.convert.errors import ValidationError
from mconv.convert.reporting import note

if TYPE_CHECKING:
    from mconv.inference.language_model import LanguageModel
    from mconv.validate.findings import Finding

__all__ = ["json_option", "path_type", "read_options", "threads_option"]

DEFAULT_CONTEXT = 512


class _SourceType(click.Path):
    """A path, or ORGANIZATION/NAME[@REVISION] on the Hub, which is converted to the folder in the Hub's cache."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from mconv.convert.hub import resolve_source

        return resolve_source(Path(os.fsdecode(super().convert(value, param, ctx))))


source_type = _SourceType(path_type=Path, readable=False)
artifacts_argument = click.argument("artifacts", metavar="ARTIFACT ...", nargs=-1, required=True, type=source_type)
reference_option = click.option(
    "--reference", required=True, type=source_type, metavar="SRC", help="What the artifacts were made from: any layout."
)
text_option = partial(
    click.option, "--text", "texts", multiple=True, type=path_type, metavar="FILE", help="A text, in UTF-8; repeatable."
)
prompt_option = partial(
    click.option, "--prompt", "prompts", multiple=True, metavar="TEXT", help="What to answer; repeatable."
)
ctx_option = partial(click.option, "--ctx", type=click.IntRange(min=8), metavar="N", help="Tokens in a chunk.")
chunks_option = click.option(
    "--chunks", type=click.IntRange(min=1), metavar="N", help="Score the first N chunks.  [default: all]"
)
imatrix_option = click.option(
    "--imatrix", type=path_type, metavar="FILE", help="The importance matrix used for quantization."
)


def note_long_context(model: LanguageModel, length: int) -> None:
    """Note a context that is longer than the one the model was trained on."""
    if length > model.trained_context:
        note(f"{model.path}: a context of {length} tokens, but the model was trained on {model.trained_context}")


def one_line(text: str, width: int = 100) -> str:
    """An untrusted text, made safe to print: no line breaks, no escape sequences."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= width else shown[: width - 3] + "..."


def print_findings(findings: Iterable[Finding]) -> None:
    """Print findings as a table, the most severe first; print nothing if there are none."""
    order = ("fail", "warn", "note")
    rows = [
        (finding.severity, finding.check, finding.kind, one_line(finding.subject, 40), one_line(finding.what, 400))
        for finding in sorted(findings, key=lambda finding: order.index(finding.severity))
    ]
    if rows:
        emit_table(("severity", "check", "kind", "subject", "what"), rows)


def fail_on_findings(findings: Iterable[tuple[str, Finding]], hint: str) -> None:
    """End the command with exit code 1 if any finding fails its artifact.

    Raises:
        ValidationError: an artifact fails; names the first finding.
    """
    failing = [(file, finding) for file, finding in findings if finding.severity == "fail"]
    if failing:
        file, first = failing[0]
        others = f"; and {len(failing) - 1} more" if len(failing) > 1 else ""
        raise ValidationError(f"{file}: {first.kind}: {one_line(first.what, 200)}{others}", hint)
