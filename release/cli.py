"""The command line of mrelease."""

from __future__ import annotations

from functools import partial

import click

from mconv.convert.cli.console import run_command
from mconv.convert.cli.program import find_commands, program
from mconv.release import commands


@program("mrelease", click.Group)
def cli() -> None:
    """Build, check and publish a release from a recipe, with measurements and a checksum for every file."""


for command in find_commands(commands):
    cli.add_command(command)

main = partial(run_command, cli)
"""Entry point of `mrelease`."""

if __name__ == "__main__":
    main()
