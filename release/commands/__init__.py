"""The commands of mrelease: one file each. Adding a command is adding a file."""

from __future__ import annotations

from collections.abc import Iterator

import click

from mconv.convert.cli.commands import find_commands


def commands() -> Iterator[click.Command]:
    """Every command in this folder."""
    return find_commands(__name__, __path__)
