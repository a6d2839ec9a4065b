"""Reading the JSON files beside the weights, none of which is trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mconv.convert.errors import FormatError, SourceError


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        SourceError: there is no such file.
        FormatError: it is not UTF-8.
    """
    # A pipe or a device would be waited for.
    if path.exists() and not path.is_file():
        raise SourceError(f"{path.name} is no regular file", "the checkpoint is not what it seems; get it again")
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file", "give the folder of a checkpoint with all of its files") from error
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path.name}: byte {error.start} is not UTF-8", "fetch the file again, it is damaged"
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
        raise FormatError(f"{path.name}: not JSON ({error})", "fetch the file again, it is cut or damaged") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path.name}: holds no JSON object", "the file is not what its name says")
    return content


def read_object_if_any(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no file.

    Raises:
        SourceError: it cannot be read.
        FormatError: it is not JSON, or not an object.
    """
    return read_object(path) if path.is_file() else {}


def member(source: str, content: dict[str, Any], key: str, kind: type) -> Any:
    """`content[key]`, or an empty `kind` where it is missing or null.

    Raises:
        FormatError: it is of another type.
    """
    value = content.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise FormatError(
            f"{source}: '{key}' is a {type(value).__name__}, not a {kind.__name__}",
            "the file is damaged, or not what its name says",
        )
    return value
