"""Draft a recipe: values from the source, and a comment for every member."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mconv.convert.errors import DiskError, SourceError
from mconv.convert.layouts.gguf.form import open_form
from mconv.convert.layouts.layout import ReadOptions
from mconv.convert.model.metadata import Metadata
from mconv.convert.model.provenance import card_metadata, read_card
from mconv.quantize.plan import file_stem
from mconv.release.recipe import Recipe

_TYPES = ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]
_HEAD = (
    "# A recipe for mrelease. Paths count from the folder of this file. Members that begin with '#' have these values\n"
    "# as examples, not as defaults.\n"
)


def draft_recipe(source: str, path: Path | None, reading: ReadOptions, texts: Sequence[Path]) -> tuple[Path, str]:
    """The recipe for a source, and where it goes.

    Args:
        source: a path, or ORGANIZATION/NAME[@REVISION] on the Hub.
        path: where the recipe goes; NAME.toml in the current folder where it is None.
        reading: read options of the source's layout.
        texts: to measure on.

    Raises:
        SourceError, FormatError, MappingError, PublishError: the source cannot be read.
    """
    name, metadata, place = _look_at(source, reading)
    path = path or Path(f"{name}.toml")

    def from_recipe(file: Path) -> str:
        return os.path.relpath(file, path.parent)

    known: dict[str, Any] = {
        "schema_version": 1,
        "name": name,
        "source": from_recipe(Path(source)) if place is None else place,
        **{name: from_recipe(value) for name, value in reading.items() if value is not None},
        "base_model": place.split("@")[0] if place else None,
        "types": _TYPES,
        "texts": [from_recipe(text) for text in texts],
        "licence": _content(metadata, "general.license"),
        "licence_name": _content(metadata, "general.license.name"),
        "licence_link": _content(metadata, "general.license.link"),
        "languages": _content(metadata, "general.languages"),
    }
    return path, _HEAD + "".join(_members({name: value for name, value in known.items() if value is not None}))


def write_new(path: Path, text: str) -> None:
    """Write a new file.

    Raises:
        DiskError: it exists.
        OSError: it cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise DiskError(f"{path} exists already", "choose another name; a recipe is never overwritten") from error


def _look_at(source: str, reading: ReadOptions) -> tuple[str, Metadata, str | None]:
    """Name and metadata of a model; of one on the Hub, with its commit too, and without its weights."""
    path = Path(source)
    if path.exists():
        opened = open_form(path, **reading)
        name = _content(opened.metadata, "general.name")
        return _file_name(name if isinstance(name, str) else file_stem(opened)), opened.metadata, None
    from mconv.convert.hub.sources import download_card, parse_source

    hub = parse_source(source)
    if hub is None:
        raise SourceError(f"{source}: no such file or folder", "give a checkpoint, or ORGANIZATION/NAME on the Hub")
    folder = download_card(hub)
    return _file_name(hub.repo.split("/")[1]), card_metadata(read_card(folder)), f"{hub.repo}@{folder.name}"


def _file_name(name: str) -> str:
    """The start of the file names of a model: the GGUF naming rule joins words with dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-")[:96] or "model"


def _content(metadata: Metadata, key: str) -> Any:
    value = metadata.get(key)
    return value.content if value else None


def _members(known: Mapping[str, Any]) -> Iterator[str]:
    """Every member with its comment; unknown ones with an example, commented out."""
    for name, field in Recipe.model_fields.items():
        yield "\n" + textwrap.fill(field.description or "", 118, initial_indent="# ", subsequent_indent="# ") + "\n"
        if name in known:
            yield f"{name} = {_toml(known[name])}\n"
        else:
            yield f"# {name} = {_toml((field.examples or [None])[0])}\n"


def _toml(value: Any) -> str:
    """A value in TOML. Strings are written as in JSON, without DEL and lone surrogates, which TOML does not allow."""
    if isinstance(value, str):
        return json.dumps(value.encode("utf-8", "replace").decode(), ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
