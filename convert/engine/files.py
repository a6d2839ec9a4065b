"""Write small files, each complete and synced before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mconv.convert.engine.partial import naming, partial_path


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write small files in the given order.

    Raises:
        OSError: writing failed.
    """
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(path)
        try:
            with naming(path), partial.open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
