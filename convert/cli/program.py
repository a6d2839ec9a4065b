"""What the command lines of mconv, mquant, mval and mrelease share."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar

import click

from mconv.convert import __version__

C = TypeVar("C", bound=click.Command)


def program(name: str, kind: type[C]) -> Callable[[Callable[..., Any]], C]:
    """Turn a function into the command line of a program, with `--version`, and with `-h` for `--help`.

    Args:
        name: the name of the program, as the user types it.
        kind: `click.Group` for a program with several commands, otherwise `click.Command`.

    Example:
        @program("mval", click.Group)
        def cli() -> None:
            \"\"\"The text of `mval --help`.\"\"\"
    """

    def make(function: Callable[..., Any]) -> C:
        with_version = click.version_option(__version__, prog_name=name)(function)
        return click.command(cls=kind, context_settings={"help_option_names": ["-h", "--help"]})(with_version)

    return make


def find_commands(package: ModuleType) -> Iterator[click.Command]:
    """Every command in a package: the `command` of each module that has one. To add a command, add a file."""
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        if hasattr(module, "command"):
            yield module.command
