"""The journal of a file that grows: which jobs of its plan are done, so that a run that was killed goes on.

It lies beside the file as NAME.partial.journal. The file's data is synced before the jobs are written down: what the
journal says is done is on the disk, whatever happens to the process or the machine. It is written anew each time and
renamed, so that it is whole or the one before.

Format: a line of JSON (digest of the plan, number of jobs, the file's inode, and once the file is whole its time of
change), a bit for each job, and the CRC-32 of both, little-endian.
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
    """Which of some jobs are done.

    Args:
        count: how many jobs there are.
        bits: a bit for each, lowest first; none done where nothing is given.
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
    """What a journal says.

    Attributes:
        digest: of the plan.
        done: its jobs that are done.
        inode: of the file that grows.
        changed_ns: when the whole file was last written to; None while it grows.
    """

    digest: str
    done: Done
    inode: int
    changed_ns: int | None = None


def journal_path(partial: Path) -> Path:
    """Where the journal of a file that grows lies."""
    return partial.parent / f"{partial.name}.journal"


def write_journal(path: Path, entry: Entry) -> None:
    """Write a journal in place of the one before. What it says must be on the disk by now.

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
    """Read a journal; None where there is none, or it is damaged: then nothing is known to be done."""
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
    # A bit beyond the jobs would stand for a job that does not exist.
    if len(bits) != -(-count // 8) or (count % 8 and bits[-1] >> count % 8):
        return None
    return Entry(digest, Done(count, bits), inode, changed_ns)


def journal_files(partial: Path) -> tuple[Path, Path]:
    """The journal of a file that grows, and one that was being written when its process was killed."""
    path = journal_path(partial)
    return path, path.parent / f"{path.name}~"


def is_unfinished(name: str) -> bool:
    """Whether a name is one that a killed run leaves: a file that grows, or its journal."""
    return name.endswith((PARTIAL, f"{PARTIAL}.journal", f"{PARTIAL}.journal~"))


def remove_journal(partial: Path) -> None:
    """Remove the journal of a file that grows."""
    for path in journal_files(partial):
        path.unlink(missing_ok=True)
