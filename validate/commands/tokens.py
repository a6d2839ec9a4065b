"""mval tokens."""

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
    path_type,
    print_findings,
    read_options,
    reference_option,
)

if TYPE_CHECKING:
    from mconv.validate.tokens.compare import TokensResult


@click.command("tokens")
@artifacts_argument
@reference_option
@read_options
@click.option("--text", "texts", multiple=True, type=path_type, metavar="FILE", help="Tokenize this too; repeatable.")
@json_option
def command(
    artifacts: tuple[Path, ...], reference: Path, reading: ReadOptions, texts: tuple[Path, ...], as_json: bool
) -> None:
    """Check that text becomes the same token ids as in the reference.

    Reads no weights: a folder with the configuration and the tokenizer is enough.

    \b
    Examples:
      mval tokens model-Q4_K_M.gguf --reference Magistral-Small-2507
      mval tokens a.gguf b.gguf --reference model/ --text eval.txt --json
    """
    from mconv.validate.subject import open_subjects
    from mconv.validate.tokens.compare import compare_tokenizers, text_group

    groups = [text_group(path) for path in texts]
    with open_subjects((*artifacts, reference), reading=reading) as subjects:
        *sources, original = [subject.tokenizer for subject in subjects]
        results = [compare_tokenizers(source, original, groups) for source in sources]
    if as_json:
        emit_json({"results": [result.to_json() for result in results]})
    else:
        _print(results)
    found = [(result.file, finding) for result in results for finding in result.findings]
    fail_on_findings(found, "convert it again, with the tokenizer files of the reference beside the weights")


def _print(results: list[TokensResult]) -> None:
    emit_table(
        ("file", "texts", "number", "tokens", "differ", "known"),
        [
            (
                result.file,
                group.name,
                str(group.texts),
                str(group.tokens),
                str(group.differences),
                ", ".join(f"{count} {kind}" for kind, count in group.known.items()),
            )
            for result in results
            for group in result.groups
        ],
    )
    for result in results:
        click.echo()
        click.echo(
            f"{result.file} ({result.tokenizer}) against {result.reference} ({result.reference_tokenizer}): "
            f"{len(result.wrong_special_tokens)} of {result.special_tokens} special tokens are wrong"
        )
        print_findings(result.findings)
