"""Files that are read whole: regular ones alone, and TOML only as deep and as long as a person writes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mconv.convert.documents import read_object, read_text, read_toml, read_whole
from mconv.convert.errors import FormatError, SourceError, UsageError

HINT = "write it like this"
TOO_DEEP = {
    "lists": f"x = {'[' * 3000}",
    "closed lists": f"x = {'[' * 17}{']' * 17}",
    "inline tables": "x = " + "{a = " * 3000 + "1" + "}" * 3000,
    "a dotted key": ".".join("a" * 3000) + " = 1",
    "a dotted key of quoted parts": " . ".join(['"a"'] * 3000) + " = 1",
    "the name of a table": f"[{'.'.join('a' * 3000)}]",
    "the name of a table in a list": f"[[{'.'.join('a' * 3000)}]]",
    "a dotted key below a table": f"[{'.'.join('a' * 10)}]\n{'.'.join('b' * 10)} = 1",
}


def test_a_regular_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_whole(tmp_path / "file") == read_whole(tmp_path / "link") == b"content"


@pytest.mark.parametrize("read", [read_whole, read_text, read_object, lambda path: read_toml(path, HINT)])
def test_what_may_never_begin_or_never_end_is_refused(read: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero"), tmp_path):
        with pytest.raises(SourceError, match="is not a regular file") as raised:
            read(path)
        assert str(path) in raised.value.what


def test_toml_comes_with_its_text(tmp_path: Path) -> None:
    text = "# é\n[a.b]\nc = [[1, 2], [3]]\nd = 'One. Two. Three. 1.2.3.4'\n"
    (tmp_path / "x.toml").write_text(text, encoding="utf-8")
    content, read = read_toml(tmp_path / "x.toml", HINT)
    assert content == {"a": {"b": {"c": [[1, 2], [3]], "d": "One. Two. Three. 1.2.3.4"}}}
    assert read == text


@pytest.mark.parametrize("text", TOO_DEEP.values(), ids=TOO_DEEP)
def test_toml_has_bounded_depth(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(FormatError, match=r"x\.toml: values are nested more than 16 levels deep") as raised:
        read_toml(tmp_path / "x.toml", HINT)
    assert raised.value.hint == HINT


def test_toml_has_bounded_length(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("#" * ((1 << 20) + 1))
    with pytest.raises(FormatError, match=r"x\.toml: 1048577 bytes are too many, 1048576 are the most"):
        read_toml(tmp_path / "x.toml", HINT)


@pytest.mark.parametrize("content", [b"x = [", b"\xff", b"x = '\xed\xa0\x80'", f"x = {'1' * 5000}".encode()])
def test_what_is_not_toml_is_said(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.toml is not TOML: ") as raised:
        read_toml(tmp_path / "x.toml", HINT)
    assert raised.value.hint == HINT


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_toml(tmp_path / "x.toml", HINT)
