"""The command line of mconv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from mconv.convert.cli.console import emit_json, emit_table, run_command
from mconv.convert.cli.conversions import conversions
from mconv.convert.cli.options import json_option, path_type, read_options
from mconv.convert.cli.program import program
from mconv.convert.layouts.layout import ReadOptions
from mconv.convert.reporting import note


@program("mconv", click.Group)
def cli() -> None:
    """Convert checkpoints between layouts, exactly, in bounded memory."""


for conversion in conversions():
    cli.add_command(conversion)


@cli.command("inspect")
@click.argument("path", type=path_type, metavar="PATH")
@read_options
@json_option
def inspect(path: Path, reading: ReadOptions, as_json: bool) -> None:
    """Say what a checkpoint is: layout, family, shape, types, sizes, vocabulary. No weight is read.

    \b
    Example:
      mconv inspect Mistral-7B-Instruct-v0.3/
    """
    from mconv.convert.hub import resolve_source
    from mconv.convert.layouts import open_checkpoint
    from mconv.convert.summary import summarize

    checkpoint = open_checkpoint(resolve_source(path), **reading)
    for line in checkpoint.notes:
        note(line)
    summary = summarize(checkpoint).to_json()
    if as_json:
        emit_json(summary)
    else:
        emit_table(["property", "value"], _flatten(summary))


def _flatten(members: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    """Rows of a table from nested members: `rope.theta`."""
    for key, value in members.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield [prefix + key, str(value).lower() if isinstance(value, bool) else str(value)]


main = partial(run_command, cli)
"""Entry point of `mconv`."""

if __name__ == "__main__":
    main()
