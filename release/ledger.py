"""What has been built: a small file in the release folder that a person can read, and that the next run goes on from.

A step is done if the ledger says so for the same inputs and each of its files still has the sum that it had. So a run
that was killed anywhere is gone on with by the same command, and what a changed recipe does not touch is kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mconv.convert.documents import read_object
from mconv.convert.engine.files import write_files
from mconv.convert.engine.outputs import resolved
from mconv.convert.errors import DiskError, FormatError
from mconv.convert.reporting import note, progress_bar
from mconv.release.files import LEDGER, FileDigest, digest_file

_SCHEMA_VERSION = 1
# Hashed too quickly to need a progress bar.
_QUICK_BYTES = 100_000_000


@dataclass(frozen=True)
class Step:
    """Files of a release that are made together.

    Attributes:
        name: in the ledger.
        outputs: names of the files.
        inputs: gives everything that decides what is in them, ready for JSON. Asked only when it matters, since it may
            take reading large files.
    """

    name: str
    outputs: tuple[str, ...]
    inputs: Callable[[], Mapping[str, Any]]

    def digest(self) -> str:
        """A hash of the inputs, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.inputs(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Record:
    """A step as the ledger has it: begun with `inputs` None, done otherwise."""

    inputs: str | None
    outputs: Mapping[str, FileDigest | None]


@dataclass(frozen=True)
class _Sum:
    """The sum of a file, true as long as size and time of change are these."""

    sha256: str
    size: int
    modified_ns: int


class Ledger:
    """The ledger of one folder."""

    def __init__(self, folder: Path, records: dict[str, _Record], sums: dict[str, _Sum]) -> None:
        self.folder = folder
        self._records = records
        self._sums = sums

    def digest(self, path: Path) -> FileDigest:
        """Size and checksum of a file; read only if it changed since the checksum was computed.

        Raises:
            OSError: it cannot be read.
        """
        key = path.name if path.parent == self.folder else str(resolved(path))
        status = path.stat()
        known = self._sums.get(key)
        if known is None or (known.size, known.modified_ns) != (status.st_size, status.st_mtime_ns):
            found = _read_sum(path, status.st_size)
            known = self._sums[key] = _Sum(found.sha256, found.size, status.st_mtime_ns)
        return FileDigest(known.size, known.sha256)

    def outputs(self, names: Iterable[str]) -> dict[str, FileDigest]:
        """Size and checksum of files of the release, by name."""
        return {name: self.digest(self.folder / name) for name in sorted(names)}

    def names(self, step: str) -> tuple[str, ...]:
        """The files of a step that were written so far."""
        record = self._records.get(step)
        return tuple(sorted(record.outputs)) if record else ()

    def is_done(self, step: Step) -> bool:
        """Whether the files of a step are there, made from the same inputs and not touched since."""
        record = self._records.get(step.name)
        if record is None or record.inputs is None or record.outputs.keys() != set(step.outputs):
            return False
        if not all((self.folder / name).is_file() for name in step.outputs) or record.inputs != step.digest():
            return False
        return self.is_intact(step.name)

    def is_intact(self, name: str) -> bool:
        """Whether the files of a step that was done, from whatever inputs, have the sums that they had."""
        record = self._records.get(name)
        if record is None or record.inputs is None:
            return False
        return all(self._is(file, digest) for file, digest in record.outputs.items())

    def check_free(self, names: Iterable[str]) -> None:
        """Check that files of these names may be written.

        Raises:
            DiskError: one exists that no step of this ledger made.
        """
        owned = {name for record in self._records.values() for name in record.outputs}
        for name in names:
            if name not in owned and os.path.lexists(self.folder / name):
                raise DiskError(
                    f"{self.folder / name} exists already and was not built here",
                    "move it away, or choose another --folder",
                )

    def begin(self, *steps: Step) -> None:
        """Write down that the files of these steps are about to be made; files that they no longer have go away.

        Raises:
            DiskError: see `check_free`.
        """
        for step in steps:
            self.check_free(step.outputs)
            record = self._records.get(step.name)
            for name, digest in record.outputs.items() if record else ():
                if (self.folder / name).exists() and digest is not None and not self._is(name, digest):
                    note(f"{name} is not what was built: it is made again")
            self._remove(set(record.outputs if record else ()) - set(step.outputs))
            self._records[step.name] = _Record(None, dict.fromkeys(step.outputs))
        self.save()

    def finish(self, step: Step) -> None:
        """Write down that a step is done."""
        self._records[step.name] = _Record(step.digest(), self.outputs(step.outputs))
        self.save()

    def discard(self, *names: str) -> None:
        """Forget steps, and remove their files."""
        for name in names:
            record = self._records.pop(name, None)
            self._remove(record.outputs if record else ())
        self.save()

    def keep_only(self, names: Iterable[str]) -> None:
        """Forget all other steps and remove their files, with a note of each."""
        for name in self._records.keys() - set(names):
            for file in self._records[name].outputs:
                note(f"{file} is removed: the recipe does not ask for it any more")
            self.discard(name)

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = {
            "schema_version": _SCHEMA_VERSION,
            "steps": {
                name: {
                    "state": "begun" if record.inputs is None else "done",
                    "inputs": record.inputs,
                    "outputs": {file: asdict(digest) if digest else None for file, digest in record.outputs.items()},
                }
                for name, record in sorted(self._records.items())
            },
            "sums": {path: asdict(known) for path, known in sorted(self._sums.items())},
        }
        write_files(self.folder, {LEDGER: (json.dumps(content, indent=2) + "\n").encode()})

    def _is(self, name: str, digest: FileDigest | None) -> bool:
        path = self.folder / name
        return path.is_file() and not path.is_symlink() and self.digest(path) == digest

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
            self._sums.pop(name, None)


def read_ledger(folder: Path) -> Ledger:
    """The ledger of a folder; empty if there is none.

    Raises:
        DiskError: it is not a folder.
        FormatError, SourceError: the file is not what this version writes.
    """
    _check_folder(folder)
    if not os.path.lexists(folder / LEDGER):
        return Ledger(folder, {}, {})
    try:
        content = read_object(folder / LEDGER)
        if content["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(content["schema_version"])
        records = {
            str(name): _Record(
                step["inputs"],
                {_plain(file): FileDigest(**digest) if digest else None for file, digest in step["outputs"].items()},
            )
            for name, step in content["steps"].items()
        }
        sums = {str(path): _Sum(**known) for path, known in content["sums"].items()}
    except (KeyError, TypeError, AttributeError, ValueError, FormatError) as error:
        raise FormatError(
            f"{LEDGER} is not what this version writes", "move the folder away, and build the release again"
        ) from error
    return Ledger(folder, records, sums)


@contextmanager
def open_ledger(folder: Path) -> Iterator[Ledger]:
    """The ledger of a folder that is about to be written, made if need be; no other run has it meanwhile.

    Raises:
        DiskError: it is not a folder, or another run has it.
        FormatError, SourceError: see `read_ledger`.
    """
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DiskError(f"{folder} is being built by another run", "wait for it") from error
        yield read_ledger(folder)
    finally:
        os.close(handle)


def _check_folder(folder: Path) -> None:
    # A link that leads nowhere or back to itself is in the way too.
    if os.path.lexists(folder) and not folder.is_dir():
        raise DiskError(f"{folder} is not a folder", "choose another --folder")
    resolved(folder)


def _read_sum(path: Path, size: int) -> FileDigest:
    if size < _QUICK_BYTES:
        return digest_file(path)
    with progress_bar(size, f"sha256 {path.name}") as bar:
        return digest_file(path, bar.update)


def _plain(name: str) -> str:
    """The name of a file in the folder itself: what a ledger says may be removed."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(name)
    return name


def write_contents(ledger: Ledger, name: str, files: Mapping[str, bytes]) -> None:
    """The step of small files whose content is known: written where they are not there as they should be.

    Raises:
        DiskError, OSError: see `Ledger.begin` and `write_files`.
    """
    step = content_step(name, files)
    if not ledger.is_done(step):
        ledger.begin(step)
        write_files(ledger.folder, files)
        ledger.finish(step)


def content_step(name: str, files: Mapping[str, bytes]) -> Step:
    """A step whose inputs are the contents themselves."""
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    return Step(name, tuple(files), lambda: sums)
