"""The command line of mval."""

from __future__ import annotations

import click

from mconv.convert import __version__
from mconv.convert.cli.console import run_command
from mconv.validate.commands import commands


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mval")
def cli() -> None:
    """Is the artifact what the source was, and how much did it lose."""


for command in commands():
    cli.add_command(command)


def main() -> None:
    """Entry point of `mval`."""
    run_command(cli)


if __name__ == "__main__":
    main()
