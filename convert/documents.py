"""Reading files whole: texts, JSON and TOML, none of which is trusted."""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mconv.convert.errors import FormatError, SourceError, UsageError
from mconv.convert.reporting import printable

# What people write has a few levels and a few pages.
_MOST_LEVELS = 16
_MOST_TOML_BYTES = 1 << 20
# `a.b.c...`, with or without quotes: tomllib's time grows with the square of it.
_LONG_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){32}""")


SCHEMA_VERSION = 1
"""Of the JSON that commands print and files that they write; a change that would break a reader raises it."""


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading.

    Raises:
        SourceError: it is a pipe, a device or anything else that may never begin or never end.
        OSError: it cannot be opened.
    """
    # Opening a pipe waits for a writer unless it is told not to.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise SourceError(f"{path} is not a regular file", "give a file, not a folder, a pipe or a device")
        with os.fdopen(handle, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(handle)


def read_whole(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        SourceError, OSError: see `open_regular`.
    """
    with open_regular(path) as file:
        return file.read()


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        SourceError: there is no such file, or it is not a regular one.
        FormatError: it is not UTF-8.
    """
    try:
        return read_whole(path).decode("utf-8")
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file", "give the folder of a complete checkpoint") from error
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path.name}: byte {error.start} is not UTF-8", "the file is damaged; download it again"
        ) from error


def read_toml(path: Path, hint: str) -> tuple[dict[str, Any], str]:
    """A TOML file that a person wrote.

    Args:
        hint: how to write one.

    Returns:
        its content, nested no deeper than what follows can recurse into; and its text.

    Raises:
        UsageError: it is not TOML.
        FormatError: it is larger, or nested deeper, than anything that a person writes.
        SourceError: it is not a regular file.
        OSError: it cannot be read.
    """
    data = read_whole(path)
    if len(data) > _MOST_TOML_BYTES:
        raise FormatError(f"{path.name}: {len(data)} bytes are too many, {_MOST_TOML_BYTES} are the most", hint)
    too_deep = FormatError(f"{path.name}: values are nested more than {_MOST_LEVELS} levels deep", hint)
    try:
        text = data.decode("utf-8")
        if _LONG_KEY.search(text):
            raise too_deep
        content = tomllib.loads(text)
    except RecursionError:
        raise too_deep from None
    # Besides its own error, tomllib lets through that of a number of too many digits.
    except ValueError as error:
        raise UsageError(f"{path.name} is not TOML: {error}", hint) from error
    if _is_deeper(content, _MOST_LEVELS):
        raise too_deep
    return content, text


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and tables are nested more than so many levels deep."""
    if not isinstance(value, (dict, list)):
        return False
    members = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(member, levels - 1) for member in members)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        SourceError: it cannot be read.
        FormatError: it is not JSON, or not an object.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{path.name}: not JSON ({error})", "the file is truncated or damaged; download it again"
        ) from error
    if not isinstance(content, dict):
        raise FormatError(f"{path.name} does not contain a JSON object", "use the file from the original checkpoint")
    return content


def read_object_if_any(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no file.

    Raises:
        SourceError: it cannot be read.
        FormatError: it is not JSON, or not an object.
    """
    return read_object(path) if path.is_file() else {}


def member(source: str, content: dict[str, Any], key: str, kind: type) -> Any:
    """`content[key]`, or an empty `kind` if it is missing or null: `member("config.json", {}, "rope", dict)` is `{}`.

    Raises:
        FormatError: it has another type.
    """
    value = content.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise FormatError(
            f"{source}: '{key}' is a {type(value).__name__}, not a {kind.__name__}",
            "the file is damaged, or another file has its name; download it again",
        )
    return value


def json_text(members: dict[str, Any]) -> str:
    """One JSON object as text, `schema_version` first; numbers that JSON lacks become null."""
    data = {"schema_version": SCHEMA_VERSION, **members}
    return json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) != float("inf") and value == value else None
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
