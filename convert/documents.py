"""Read the JSON files beside the weights. None of them is trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mconv.convert.errors import FormatError, SourceError


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        SourceError: the file does not exist.
        FormatError: it is not UTF-8.
    """
    # Reading a pipe or a device might wait forever.
    if path.exists() and not path.is_file():
        raise SourceError(f"{path.name} is not a regular file", "replace it by the file from the original checkpoint")
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file", "give the folder of a complete checkpoint") from error
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path.name}: byte {error.start} is not UTF-8", "the file is damaged; download it again"
        ) from error


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
