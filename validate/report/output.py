"""The files that a report is written to: looked at before the hours that it takes to make one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from convert.errors import DiskError
from convert.folder import write_files


def check_output(path: Path) -> None:
    """Refuse an output that could not be written; its folder is made where there is none.

    Raises:
        DiskError: it is a folder, a device or a pipe.
        OSError: its folder cannot be made, or not be written to.
    """
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
