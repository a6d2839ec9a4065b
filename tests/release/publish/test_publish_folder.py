"""A release folder as it is read before anybody is asked."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mconv.convert.errors import PublishError
from mconv.release.files import FileDigest, read_folder, read_sums

from support.publications import content


def test_sums_are_taken_or_made(release: Path) -> None:
    made = {name: FileDigest(len(data), hashlib.sha256(data).hexdigest()) for name, data in content(release).items()}
    assert read_folder(release) == made
    assert list(read_folder(release)) == sorted(made, key=lambda name: (made[name].size, name))
    # A file that is older than the sums is not read: bytes that change behind everyone's back stay unseen here, and
    # are found when they are sent.
    os.utime(release / "LICENSE", ns=(0, 0))
    lines = (release / "SHA256SUMS").read_text().replace(made["LICENSE"].sha256, "0" * 64)
    (release / "SHA256SUMS").write_text(lines)
    assert read_folder(release)["LICENSE"] == FileDigest(120, "0" * 64)
    (release / "SHA256SUMS").unlink()
    assert read_folder(release) == {name: made[name] for name in made if name != "SHA256SUMS"}


def test_what_is_expected_has_to_be_there(release: Path) -> None:
    digest = read_folder(release)["LICENSE"]
    assert read_folder(release, {"LICENSE": digest})
    with pytest.raises(PublishError, match="LICENSE is not what was built"):
        read_folder(release, {"LICENSE": FileDigest(digest.size, "0" * 64)})
    with pytest.raises(PublishError, match=r"other\.gguf is missing"):
        read_folder(release, {"other.gguf": digest})


def test_sums_in_the_forms_of_coreutils(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  a b\n{'1' * 64} *./c\n")
    assert read_sums(tmp_path / "SHA256SUMS") == {"a b": "0" * 64, "c": "1" * 64}
