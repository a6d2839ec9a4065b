"""What several commands of mval share: arguments, options, the check of headers, text for a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convert.console import note
from convert.errors import ValidationError

if TYPE_CHECKING:
    from validate.findings import Finding
    from validate.model import LanguageModel

# A file that cannot be read is for the operating system to report: exit code 4, not one of usage.
path_type = click.Path(path_type=Path, readable=False)
files_argument = click.argument("files", metavar="FILE.gguf ...", nargs=-1, required=True, type=path_type)
artifacts_argument = click.argument("files", metavar="ARTIFACT ...", nargs=-1, required=True, type=path_type)
hf_config_option = click.option(
    "--hf-config",
    type=path_type,
    metavar="DIR|FILE",
    help="config.json and tokenizer of a Megatron checkpoint that lacks them.",
)
chunks_option = click.option(
    "--chunks", type=click.IntRange(min=1), metavar="N", help="Score the first N chunks.  [default: all]"
)
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads to work with.  [default: all cores]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


def check_headers(files: Iterable[Path]) -> None:
    """Look at every file before the first is run: what is wrong with the last one is told at once."""
    from validate.header import check_header

    for file in files:
        check_header(file)


def note_long_context(model: LanguageModel, length: int) -> None:
    """Say so where a model is asked for more context than it was trained on."""
    if length > model.trained_context:
        note(f"note: {model.path}: trained on {model.trained_context} tokens of context, asked for {length}")


def fail_if_any(findings: Iterable[Finding], hint: str) -> None:
    """End a command, after its results, where a finding fails an artifact.

    Raises:
        ValidationError: says the first of them.
    """
    failed = [finding for finding in findings if finding.severity == "fail"]
    if failed:
        more = f" (and {len(failed) - 1} more findings)" if len(failed) > 1 else ""
        raise ValidationError(f"{failed[0].what}{more}", hint)


def one_line(text: str, width: int = 100) -> str:
    """A text that nobody vouches for, safe to print: no line breaks, no escape sequences."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= width else shown[: width - 3] + "..."
