"""What every command shares towards the person in front of it: data on stdout, all else on stderr, one exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mconv.convert.errors import DiskError, MconvError
from mconv.convert.reporting import format_bytes

if TYPE_CHECKING:
    from tqdm import tqdm

    from mconv.convert.engine.run import OnProgress, Progress

SCHEMA_VERSION = 1
INTERRUPTED = 130


def run_command(command: click.Command) -> None:
    """Run a command line to its end: errors become two lines on stderr, and the process exits with their code."""
    # The next file to be opened would become a stream that was closed.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, _interrupt)
    sys.exit(_exit_code(command))


_interrupted: list[int] = []
"""Signals that asked the process to end. Python loses an exception that is raised in a destructor; a list stays."""


def _interrupt(number: int, _: object) -> None:
    _interrupted.append(number)
    raise KeyboardInterrupt


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
        # The reader of our stdout went away (`| head`), and click saw it first: there is nobody left to tell.
        return INTERRUPTED
    except OSError as error:
        disk = disk_error(error)
        report_error(disk.what, disk.hint)
        return disk.exit_code
    except MemoryError:
        report_error("out of memory", "run with fewer --threads, or on a machine with more memory")
        return DiskError.exit_code
    except (KeyboardInterrupt, click.Abort):
        note("interrupted")
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def disk_error(error: OSError) -> DiskError:
    """Say what an operating-system error means for the file that it names."""
    where = f"{error.filename}: " if error.filename else ""
    hints = {
        errno.ENOSPC: "free some space, or choose another output folder",
        errno.EDQUOT: "the quota is used up: free some space, or choose another output folder",
        errno.EFBIG: "the file system or a limit of the shell (ulimit -f) allows no larger file: choose another folder",
        errno.EACCES: "check the permissions",
        errno.EPERM: "check the permissions",
        errno.EROFS: "choose an output folder that can be written",
        errno.ENOENT: "check the path",
    }
    hint = hints.get(error.errno or 0, "check the disk and try again")
    return DiskError(f"{where}{error.strerror or error}", hint)


def report_error(what: str, hint: str) -> None:
    """Print the two lines of an error on stderr."""
    _stderr(f"error: {_one_line(what)}")
    _stderr(f"hint: {_one_line(hint)}")


def note(text: str) -> None:
    """Say something on stderr that is not data."""
    _stderr(text)


def emit_json(members: dict[str, Any]) -> None:
    """Print one JSON object on stdout, see `json_text`."""
    click.echo(json_text(members))


def json_text(members: dict[str, Any]) -> str:
    """One JSON object as text, `schema_version` first; numbers that JSON lacks become null."""
    data = {"schema_version": SCHEMA_VERSION, **members}
    return json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False)


def emit_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of text under headers on stdout; columns whose cells are numbers go to the right."""
    cells = [list(headers), *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    right = [all(_is_number(row[i]) for row in cells[1:]) for i in range(len(headers))]
    for row in cells:
        line = "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        )
        click.echo(line.rstrip())


def byte_progress(total: int, what: str) -> tqdm[Any]:
    """A progress bar in bytes, with rate and time left, on stderr; silent without a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None, file=sys.stderr, dynamic_ncols=True)


@contextmanager
def progress_bar(what: str) -> Iterator[OnProgress]:
    """Something to tell the progress of a run to: a bar in bytes on stderr, with rate and time left.

    Without a terminal there is no bar, but what an earlier run did is said all the same. An interrupt that went unheard
    is raised here, between two tasks.

    Args:
        what: label of the bar.
    """
    with byte_progress(0, what) as bar:

        def show(progress: Progress) -> None:
            if _interrupted:
                raise KeyboardInterrupt
            if not bar.total:
                bar.total, bar.initial = progress.total, progress.resumed
                if progress.resumed:
                    share = f"{format_bytes(progress.resumed)} of {format_bytes(progress.total)}"
                    note(f"note: an earlier run was interrupted; going on from {share} ({_percent(progress)})")
            bar.update(progress.done - bar.n)

        yield show


def _percent(progress: Progress) -> str:
    return f"{100 * progress.resumed // max(1, progress.total)} %"


def _stderr(line: str) -> None:
    # tqdm redraws its bar on the same stream; writing through it would import it for every error.
    click.echo(line, err=True)


def _one_line(text: str) -> str:
    return " ".join(_printable(text).split())


def _printable(text: str) -> str:
    """A text without the halves of characters that stand for odd bytes in a file's name."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in ("-", "+") or cell == ""


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) != float("inf") and value == value else None
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
