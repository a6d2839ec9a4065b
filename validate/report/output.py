"""The files that a report is written to: looked at before the hours that it takes to make one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mconv.convert.engine.files import write_files
from mconv.convert.engine.outputs import resolved
from mconv.convert.errors import DiskError, UsageError


def check_outputs(outputs: Sequence[Path], inputs: Iterable[Path]) -> None:
    """Refuse outputs that could not be written; a folder is made where there is none.

    Args:
        inputs: what is read, and so must not be replaced.

    Raises:
        UsageError: two outputs have one name, or an output is an input.
        DiskError: one is a folder, a device or a pipe.
        OSError: a folder cannot be made, or not be written to.
    """
    taken = {resolved(path) for path in inputs}
    for path in outputs:
        if path == Path("-"):
            raise UsageError("only --json can go to stdout", "give the name of a file")
        if resolved(path) in taken:
            raise UsageError(f"{path} would overwrite what is read or written besides", "choose another name")
        taken.add(resolved(path))
        if path.exists() and not path.is_file():
            raise DiskError(f"{path} is no regular file", "give the name of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def write_output(path: Path, text: str) -> None:
    """Write a file whole or not at all; one that exists is replaced.

    Raises:
        OSError: writing failed.
    """
    write_files(path.parent, {path.name: text.encode("utf-8")})
