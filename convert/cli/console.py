"""What every command shares towards the person in front of it: data on stdout, all else on stderr, one exit code."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mconv.convert.errors import DiskError, MconvError, UsageError

if TYPE_CHECKING:
    from tqdm import tqdm

SCHEMA_VERSION = 1
INTERRUPTED = 130
_MOST_FILES = 1 << 16


def run_command(command: click.Command) -> None:
    """Run a command line to its end: errors become two lines on stderr, and the process exits with their code."""
    # The next file to be opened would become a stream that was closed.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, _interrupt)
    _allow_files()
    sys.exit(_exit_code(command))


def _allow_files() -> None:
    """Let the process open as many files as it may: a run of a thousand ranks leaves two thousand."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _interrupt(*_: object) -> None:
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


def parse_bytes(text: str) -> int:
    """A size as people write it, in decimal units: 5GB, 500MB, 1.5GB, 1000000.

    Raises:
        UsageError: it is none, or zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size < 1:
        raise UsageError(f"{text!r} is no size", "write it as 5GB or 500MB")
    return size


def format_bytes(count: int) -> str:
    """A size for people, in the decimal units that file listings use."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


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
