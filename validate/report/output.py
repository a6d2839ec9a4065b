"""The output files of a report, checked before a run that may take hours."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mconv.convert.engine.files import write_files
from mconv.convert.engine.outputs import resolved
from mconv.convert.errors import DiskError, UsageError


def check_outputs(outputs: Sequence[Path], inputs: Iterable[Path]) -> None:
    """Reject outputs that cannot be written; create missing folders.

    Args:
        inputs: files that are read and must not be replaced.

    Raises:
        UsageError: two outputs have the same name, or an output is an input.
        DiskError: an output is a folder, a device or a pipe.
        OSError: a folder cannot be created or written to.
    """
    taken = {resolved(path) for path in inputs}
    for path in outputs:
        if path == Path("-"):
            raise UsageError("only --json can go to stdout", "give the name of a file")
        if resolved(path) in taken:
            raise UsageError(f"{path} would overwrite an input or another output", "choose another name")
        taken.add(resolved(path))
        if path.exists() and not path.is_file():
            raise DiskError(f"{path} is not a regular file", "give the name of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def write_output(path: Path, text: str) -> None:
    """Write a file completely or not at all; replace an existing one.

    Raises:
        OSError: writing failed.
    """
    write_files(path.parent, {path.name: text.encode("utf-8")})
