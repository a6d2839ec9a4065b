"""What several commands of mval share: arguments, options, the check of headers, text for a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

# A file that cannot be read is for the operating system to report: exit code 4, not one of usage.
path_type = click.Path(path_type=Path, readable=False)
files_argument = click.argument("files", metavar="FILE.gguf ...", nargs=-1, required=True, type=path_type)
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads to work with.  [default: all cores]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


def check_headers(files: Iterable[Path]) -> None:
    """Look at every file before the first is run: what is wrong with the last one is told at once."""
    from validate.header import check_header

    for file in files:
        check_header(file)


def one_line(text: str, width: int = 100) -> str:
    """A text that nobody vouches for, safe to print: no line breaks, no escape sequences."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= width else shown[: width - 3] + "..."
