"""The files of a release folder, with their sizes and checksums."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mconv.convert.documents import read_text
from mconv.convert.engine.journal import is_unfinished
from mconv.convert.errors import DiskError, FormatError, PublishError, UsageError
from mconv.convert.reporting import progress_bar

CARD = "README.md"
SUMS = "SHA256SUMS"
STATE = "publish-state.json"
LEDGER = "build-state.json"
# The signature covers the files in SHA256SUMS, and the state files are not published.
_UNLISTED = (SUMS, "model.sig", STATE)
_LINE = re.compile(r"(?P<sum>[0-9a-f]{64}) [ *](?P<name>[^\\]+)")
_PIECE = 1 << 22


@dataclass(frozen=True)
class FileDigest:
    """Size and hash of a file, independent of its path.

    Attributes:
        size: size in bytes.
        sha256: SHA-256 in hexadecimal.
    """

    size: int
    sha256: str


def read_folder(folder: Path, expected: Mapping[str, FileDigest] | None = None) -> dict[str, FileDigest]:
    """Every file of a release folder, by its path with slashes, smallest first.

    The checksum of a file is taken from SHA256SUMS if that is newer than the file; otherwise the file is read. Hidden
    files, partial files and the state files of building and publishing are left out.

    Args:
        expected: known size and checksum of some files.

    Raises:
        UsageError: the folder does not exist or is empty.
        PublishError: a file is missing, differs from its checksum or from `expected`, is not listed in SHA256SUMS, or
            is a link.
        FormatError: SHA256SUMS is not in the format of sha256sum.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", "give the folder of a release")
    paths = _files(folder)
    if not paths:
        raise UsageError(f"{folder} is empty", "give the folder of a release")
    sums = folder / SUMS
    listed = read_sums(sums) if SUMS in paths else {}
    if SUMS in paths:
        _check_names(paths, listed)
    # A file that changed after SHA256SUMS was written is read again.
    trusted = {name for name in listed if paths[name].stat().st_mtime_ns <= sums.stat().st_mtime_ns}
    digests = {name: FileDigest(paths[name].stat().st_size, listed[name]) for name in trusted}
    digests |= _read_digests({name: path for name, path in paths.items() if name not in trusted})
    for name, digest in digests.items():
        if listed.get(name, digest.sha256) != digest.sha256:
            raise PublishError(f"{name} is not what {SUMS} says", "build the release again")
    for name, digest in (expected or {}).items():
        if digests.get(name) != digest:
            what = "is missing" if name not in digests else "is not what was built"
            raise PublishError(f"{name} {what}", "build the release again")
    return dict(sorted(digests.items(), key=lambda item: (item[1].size, item[0])))


def read_sums(path: Path) -> dict[str, str]:
    """Name to SHA-256 from a file in the format of coreutils' sha256sum.

    Raises:
        FormatError: it has another format, or a name with a line break or a backslash.
    """
    sums = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        match = _LINE.fullmatch(line)
        if not match:
            raise FormatError(f"{path.name}: line {number} is not a checksum and a name", "write it with sha256sum")
        sums[match["name"].removeprefix("./")] = match["sum"]
    return sums


def digest_file(path: Path, advance: Callable[[int], object] = lambda _: None) -> FileDigest:
    """Size and SHA-256 of a file, read in pieces.

    Args:
        advance: called with the size of each piece.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
            advance(len(piece))
    return FileDigest(size, digest.hexdigest())


def git_blob_id(content: bytes) -> str:
    """The git object id of a content: the SHA-1 of `blob SIZE`, a zero byte and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in name.split("/")) or name in (STATE, LEDGER) or is_unfinished(name):
            continue
        # Its target may be any file of this machine.
        if path.is_symlink():
            raise PublishError(f"{name} is a link", "put the file itself into the folder")
        if path.is_file():
            found[name] = path
        elif not path.is_dir():
            raise PublishError(f"{name} is not a regular file", "remove it from the folder")
    return found


def _check_names(paths: Mapping[str, Path], listed: Mapping[str, str]) -> None:
    for name in listed:
        if name not in paths:
            raise PublishError(f"{name} is missing, though {SUMS} lists it", "build the release again")
    for name in paths:
        if name not in listed and name not in _UNLISTED:
            raise PublishError(f"{name} is not listed in {SUMS}", "remove it, or build the release again")


def _read_digests(paths: Mapping[str, Path]) -> dict[str, FileDigest]:
    try:
        with progress_bar(sum(path.stat().st_size for path in paths.values()), "sha256") as bar:
            return {name: digest_file(path, bar.update) for name, path in paths.items()}
    except FileNotFoundError as error:
        raise DiskError(f"{error.filename} disappeared", "do not change the folder while it is published") from error
