"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from mconv.convert.layouts import layouts
from mconv.convert.layouts.layout import LayoutOption

_F = TypeVar("_F", bound=Callable[..., Any])

# The code that opens a path checks whether it can be read.
path_type = click.Path(path_type=Path, readable=False)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the plan with its exact sizes; write nothing.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
keep_partial_option = click.option(
    "--keep-partial",
    is_flag=True,
    help="After Ctrl-C, keep the partial output: the same command continues from there, as it does after a kill.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="Number of threads.  [default: all cores]"
)


def layout_option(option: LayoutOption) -> Callable[[_F], _F]:
    """An option of a layout as an option of a command."""
    choice = click.Choice(option.choices, case_sensitive=False) if option.choices else None
    return click.option(
        f"--{option.name.replace('_', '-')}",
        type=path_type if option.is_path else choice,
        metavar=option.metavar,
        default=option.default,
        show_default=option.default is not None,
        help=option.help,
    )


def read_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The read options of every layout, for a command that opens checkpoints of any: it gets them as `reading`."""
    options = {option.name: option for layout in layouts().values() for option in layout.read_options}

    @functools.wraps(command)
    def packed(**given: Any) -> Any:
        reading = {name: given.pop(name) for name in options}
        return command(**given, reading=reading)

    for option in reversed(options.values()):
        packed = layout_option(option)(packed)
    return packed


def write_options(command: _F) -> _F:
    """The options of every command that writes checkpoints; see `WriteOptions`."""
    for option in (
        threads_option, keep_partial_option, overwrite_option, json_option, dry_run_option,
    ):  # fmt: skip
        command = option(command)
    return command


@dataclass(frozen=True)
class WriteOptions:
    """How a command writes files: `--dry-run`, `--json`, `--overwrite`, `--keep-partial`, `--threads`."""

    dry_run: bool
    as_json: bool
    overwrite: bool
    keep_partial: bool
    threads: int | None

    @classmethod
    def take_from(cls, given: dict[str, Any]) -> WriteOptions:
        """Remove these options from the options of a command; the others remain."""
        names = ("dry_run", "as_json", "overwrite", "keep_partial", "threads")
        return cls(*(given.pop(name) for name in names))

    @property
    def verb(self) -> str:
        """The verb with which the command reports what it did."""
        return "would write" if self.dry_run else "wrote"
