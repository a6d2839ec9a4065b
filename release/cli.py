"""The command line of mrelease."""

from __future__ import annotations

import click

from mconv.convert import __version__
from mconv.convert.cli.console import run_command
from mconv.release.commands import commands


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mrelease")
def cli() -> None:
    """From a recipe to a published repository: every file measured, every sum known."""


for command in commands():
    cli.add_command(command)


def main() -> None:
    """Entry point of `mrelease`."""
    run_command(cli)


if __name__ == "__main__":
    main()
