"""Output of all commands: data on stdout, everything else on stderr, one exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mconv.convert.documents import json_text
from mconv.convert.errors import DiskError, MconvError, disk_error
from mconv.convert.reporting import Bar, Listener, listening, printable

if TYPE_CHECKING:
    from tqdm import tqdm

INTERRUPTED = 130


def run_command(command: click.Command) -> None:
    """Run a command line and exit: an error is printed as two lines on stderr and sets the exit code."""
    # If a standard stream is closed, the next file opened would get its file descriptor.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    _interrupted.clear()
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, _interrupt)
    listener = Listener(lambda text: _stderr(f"note: {text}"), lambda text: _stderr(f"warning: {text}"), _bar)
    with listening(listener):
        code = _exit_code(command)
    sys.exit(code)


_interrupted: list[int] = []
"""Signals that asked the process to end. Python loses an exception that is raised in a destructor; a list stays."""


def _interrupt(number: int, _: object) -> None:
    _interrupted.append(number)
    raise KeyboardInterrupt


@contextmanager
def _bar(total: int, what: str, unit: str) -> Iterator[Bar]:
    """A progress bar with rate and time left, on stderr; silent without a terminal."""
    from tqdm import tqdm

    with tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        disable=None,
        file=sys.stderr,
        dynamic_ncols=True,
    ) as bar:
        yield _InterruptedBar(bar)


class _InterruptedBar:
    """A bar that raises an interrupt that Python lost."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    def update(self, count: int, detail: str = "") -> None:
        """Advance by `count`."""
        if _interrupted:
            raise KeyboardInterrupt
        if detail:
            self._bar.set_postfix_str(detail, refresh=False)
        self._bar.update(count)


def _exit_code(command: click.Command) -> int:
    try:
        result = command.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.UsageError as error:
        name = error.ctx.command_path if error.ctx else command.name
        report_error(error.format_message(), f"see '{name} --help'")
        return error.exit_code
    except click.ClickException as error:
        report_error(error.format_message(), "see --help")
        return 2
    except MconvError as error:
        report_error(error.what, error.hint)
        return error.exit_code
    except SystemExit:
        # The reader of stdout has closed the pipe (`| head`), and click noticed it first: there is nothing to report.
        return INTERRUPTED
    except OSError as error:
        disk = disk_error(error)
        report_error(disk.what, disk.hint)
        return disk.exit_code
    except MemoryError:
        report_error("out of memory", "run with fewer --threads, or on a machine with more memory")
        return DiskError.exit_code
    except (KeyboardInterrupt, click.Abort):
        _stderr("interrupted")
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def report_error(what: str, hint: str) -> None:
    """Print the two lines of an error on stderr."""
    _stderr(f"error: {_one_line(what)}")
    _stderr(f"hint: {_one_line(hint)}")


def emit_json(members: dict[str, Any]) -> None:
    """Print one JSON object on stdout; see `json_text`."""
    click.echo(json_text(members))


def emit_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with headers on stdout; columns of numbers are aligned to the right."""
    cells = [list(headers), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    right = [all(_is_number(row[i]) for row in cells[1:]) for i in range(len(headers))]
    for row in cells:
        line = "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        )
        click.echo(line.rstrip())


def _stderr(line: str) -> None:
    # tqdm redraws its bar on the same stream; writing through tqdm would mean importing it for every error.
    click.echo(line, err=True)


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in ("-", "+") or cell == ""
