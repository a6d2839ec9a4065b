"""The state of an interrupted publication: a small, readable file in the release folder."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mconv.convert.documents import read_object
from mconv.convert.engine.files import write_files
from mconv.convert.errors import FormatError, PublishError


@dataclass(frozen=True)
class PublishState:
    """The progress of a publication.

    Attributes:
        repo: `ORGANIZATION/NAME`.
        plan: the hash of the plan.
        parent: the commit of main at the start.
        pull_request: the number of the pull request, once it is open.
        commit: the published commit of main, once it is verified.
    """

    repo: str
    plan: str
    parent: str
    pull_request: int | None = None
    commit: str | None = None

    def save(self, path: Path) -> None:
        """Write the file completely or not at all."""
        write_files(
            path.parent, {path.name: (json.dumps({"schema_version": 1, **asdict(self)}, indent=2) + "\n").encode()}
        )


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs; the operating system releases the lock when this process ends.

    Raises:
        PublishError: another run has locked it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise PublishError(f"{folder} is being published by another run", "wait for it to end") from error
    finally:
        os.close(handle)


def load_state(path: Path) -> PublishState | None:
    """The state of an earlier run, if there is one.

    Raises:
        FormatError: the file is not what this version writes.
    """
    if not path.exists():
        return None
    try:
        members = read_object(path)
    except FormatError:
        members = {}
    version = members.pop("schema_version", None)
    kinds = {"repo": str, "plan": str, "parent": str, "pull_request": int | None, "commit": str | None}
    if version != 1 or members.keys() != kinds.keys() or not all(isinstance(members[key], kinds[key]) for key in kinds):
        raise FormatError(f"{path.name} is not what this version writes", "delete it; what is published stays")
    return PublishState(**members)
