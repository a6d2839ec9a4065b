"""mval template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mconv.convert.cli.console import emit_json, emit_table
from mconv.convert.layouts.layout import ReadOptions
from mconv.validate.commands.shared import (
    artifacts_argument,
    fail_on_findings,
    json_option,
    one_line,
    print_findings,
    read_options,
    reference_option,
)

if TYPE_CHECKING:
    from mconv.validate.template.results import TemplateResult


@click.command("template")
@artifacts_argument
@reference_option
@read_options
@json_option
def command(artifacts: tuple[Path, ...], reference: Path, reading: ReadOptions, as_json: bool) -> None:
    """Whether conversations become the tokens that they become in the reference.

    Artifacts are compared with the reference's chat template, or with mistral-common if it has none. Reads no weights.

    \b
    Examples:
      mval template model-Q4_K_M.gguf --reference Magistral-Small-2507
      mval template a.gguf b.gguf --reference model/ --json
    """
    from mconv.validate.subject import open_subjects
    from mconv.validate.template.compare import compare_conversations

    with open_subjects((*artifacts, reference), reading=reading) as subjects:
        *sources, original = [subject.tokenizer for subject in subjects]
        results = [compare_conversations(source, original) for source in sources]
    if as_json:
        emit_json({"results": [result.to_json() for result in results]})
    else:
        _print(results)
    found = [(result.file, finding) for result in results for finding in result.findings]
    fail_on_findings(found, "convert it again with the chat template of the reference")


def _print(results: list[TemplateResult]) -> None:
    emit_table(
        ("file", "conversation", "status", "tokens", "how"),
        [
            (
                result.file,
                conversation.name,
                conversation.status.replace("_", " ") + (" (known)" if conversation.known else ""),
                "" if conversation.tokens is None else str(conversation.tokens),
                "" if conversation.status in ("same", "both_refuse") else one_line(conversation.how, 160),
            )
            for result in results
            for conversation in result.conversations
        ],
    )
    for result in results:
        click.echo()
        click.echo(f"{result.file} against {result.reference} ({result.against})")
        print_findings(result.findings)
