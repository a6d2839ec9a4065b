"""The journal of a partial file: which jobs of its plan are done, so that a killed run can be continued.

It is stored beside the file as NAME.partial.journal. The data is synced before the journal is written, so a job that
the journal marks as done is on the disk even if the process or the machine fails. Each update writes a new journal and
renames it over the old one, so the journal is never incomplete.

Format: a line of JSON (digest of the plan, number of jobs, inode of the file, and, when the file is complete, its time
of modification), one bit per job, and the CRC-32 of both, little-endian.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.engine.partial import PARTIAL, naming

_FORMAT = "mconv-journal-1"


class Done:
    """Which jobs are done.

    Args:
        count: how many jobs there are.
        bits: one bit per job, lowest bit first. Default: no job is done.
    """

    def __init__(self, count: int, bits: bytes | None = None) -> None:
        self.count = count
        self._bits = bytearray(-(-count // 8)) if bits is None else bytearray(bits)

    def __contains__(self, job: int) -> bool:
        return bool(self._bits[job >> 3] & 1 << (job & 7))

    def add(self, job: int) -> None:
        """Mark a job as done."""
        self._bits[job >> 3] |= 1 << (job & 7)

    def __len__(self) -> int:
        return sum(byte.bit_count() for byte in self._bits)

    def to_bytes(self) -> bytes:
        """The bits."""
        return bytes(self._bits)


@dataclass(frozen=True)
class Entry:
    """The content of a journal.

    Attributes:
        digest: the digest of the plan.
        done: the jobs that are done.
        inode: the inode of the partial file.
        changed_ns: when the complete file was last modified; None while it is incomplete.
    """

    digest: str
    done: Done
    inode: int
    changed_ns: int | None = None


def journal_path(partial: Path) -> Path:
    """The path of the journal of a partial file."""
    return partial.parent / f"{partial.name}.journal"


def write_journal(path: Path, entry: Entry) -> None:
    """Replace the journal. The data of all jobs that it marks as done must already be synced.

    Raises:
        OSError: writing failed.
    """
    members = {
        "format": _FORMAT,
        "plan": entry.digest,
        "jobs": entry.done.count,
        "inode": entry.inode,
        "changed_ns": entry.changed_ns,
    }
    content = json.dumps(members).encode("ascii") + b"\n" + entry.done.to_bytes()
    growing = path.parent / f"{path.name}~"
    with naming(path), growing.open("wb") as handle:
        handle.write(content + zlib.crc32(content).to_bytes(4, "little"))
        handle.flush()
        os.fsync(handle.fileno())
    growing.replace(path)


def read_journal(path: Path) -> Entry | None:
    """Read a journal; None if it is missing or damaged, and then no job counts as done."""
    try:
        data = path.read_bytes() if path.is_file() else b""
    except OSError:
        return None
    content, checksum = data[:-4], data[-4:]
    if zlib.crc32(content).to_bytes(4, "little") != checksum:
        return None
    line, _, bits = content.partition(b"\n")
    try:
        return _parse(json.loads(line), bits)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _parse(members: Any, bits: bytes) -> Entry | None:
    digest, count, inode, changed_ns = (members[name] for name in ("plan", "jobs", "inode", "changed_ns"))
    numbers = type(count) is int and count >= 0 and type(inode) is int and type(changed_ns) in (int, type(None))
    if members["format"] != _FORMAT or not isinstance(digest, str) or not numbers:
        return None
    # A bit beyond the last job would mean a job that does not exist.
    if len(bits) != -(-count // 8) or (count % 8 and bits[-1] >> count % 8):
        return None
    return Entry(digest, Done(count, bits), inode, changed_ns)


def journal_files(partial: Path) -> tuple[Path, Path]:
    """The journal of a partial file, and the one that was being written when its process was killed."""
    path = journal_path(partial)
    return path, path.parent / f"{path.name}~"


def is_unfinished(name: str) -> bool:
    """Whether a killed run leaves files of this name: a partial file, or its journal."""
    return name.endswith((PARTIAL, f"{PARTIAL}.journal", f"{PARTIAL}.journal~"))


def remove_journal(partial: Path) -> None:
    """Remove the journal of a partial file."""
    for path in journal_files(partial):
        path.unlink(missing_ok=True)
