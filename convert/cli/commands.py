"""The commands of a program: one file each in a package. Adding a command is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator

import click


def find_commands(package: str, path: Iterable[str]) -> Iterator[click.Command]:
    """Every command in a package: the `command` of each module that has one.

    Args:
        package: its `__name__`.
        path: its `__path__`.
    """
    for found in pkgutil.iter_modules(path):
        module = importlib.import_module(f"{package}.{found.name}")
        if hasattr(module, "command"):
            yield module.command
