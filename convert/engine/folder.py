"""A folder that is not written yet: large files with a plan each, and small ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mconv.convert.engine.partial import naming, partial_path
from mconv.convert.engine.plan import Plan


@dataclass(frozen=True)
class FolderPlan:
    """Every file of a folder, by its path within it.

    Attributes:
        weights: the plan of each file of weights.
        files: the content of all others, in the order in which they are written: what makes the folder a checkpoint
            comes last, so that a folder that has it is whole.
    """

    weights: Mapping[str, Plan]
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(plan.size for plan in self.weights.values()) + sum(map(len, self.files.values()))


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write small files, each whole and synced before it gets its name.

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
