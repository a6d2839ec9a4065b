"""The command line of mval."""

from __future__ import annotations

from functools import partial

import click

from mconv.convert.cli.console import run_command
from mconv.convert.cli.program import find_commands, program
from mconv.validate import commands


@program("mval", click.Group)
def cli() -> None:
    """Check an artifact against its source, and measure how much quality it lost."""


for command in find_commands(commands):
    cli.add_command(command)

main = partial(run_command, cli)
"""Entry point of `mval`."""

if __name__ == "__main__":
    main()
