"""The layouts, one folder each with a `LAYOUT`. To add a layout and its commands, add a folder."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.errors import SourceError, UsageError
from mconv.convert.layouts.layout import Layout

if TYPE_CHECKING:
    from mconv.convert.model.checkpoint import Checkpoint

_registered: dict[str, Layout] = {}


def register_layout(layout: Layout) -> None:
    """Register a layout that is defined outside this package."""
    _registered[layout.name] = layout


def layouts() -> dict[str, Layout]:
    """Every layout by its name."""
    return {**_found(), **_registered}


@cache
def _found() -> dict[str, Layout]:
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {module.LAYOUT.name: module.LAYOUT for module in modules if hasattr(module, "LAYOUT")}


def find_layout(name: str) -> Layout:
    """The layout of this name.

    Raises:
        UsageError: there is no such layout.
    """
    known = layouts()
    if name not in known:
        raise UsageError(f"unknown layout {name!r}", f"known are {', '.join(known)}")
    return known[name]


def detect_layout(path: Path) -> Layout:
    """The layout of the checkpoint at a path.

    Raises:
        SourceError: the path does not exist.
    """
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder", "give a folder of a checkpoint, or a GGUF file")
    # A folder may contain files of a fallback layout beside those of another layout.
    ranked = sorted(layouts().values(), key=lambda layout: layout.is_fallback)
    kind = "folder" if path.is_dir() else "file"
    fallbacks = (layout for layout in ranked if layout.is_fallback and layout.path_kind == kind)
    return next((layout for layout in ranked if layout.detect(path)), None) or next(fallbacks)


def open_checkpoint(path: Path, **options: Any) -> Checkpoint:
    """Open a checkpoint of any layout. Only headers and configuration are read.

    Args:
        options: read options of its layout, such as `hf_config` for Megatron; None means not given.

    Raises:
        SourceError, FormatError, MappingError: it cannot be opened; see the function of its layout.
        UsageError: the layout does not have the option.

    Example:
        >>> open_checkpoint(Path("examples/tiny-mistral")).layout
        'hf'
    """
    layout = detect_layout(path)
    try:
        resolved = layout.resolve_read(**options)
    except UsageError as error:
        raise UsageError(f"{path}: {error.what}", error.hint) from error
    return layout.open(path, **resolved)


def options_for(path: Path, **options: Any) -> dict[str, Any]:
    """The options that the layout at a path accepts: one command may read paths of several layouts."""
    taken = [name for name, value in options.items() if value is not None]
    layout = detect_layout(path) if taken else None
    return {name: options[name] for name in taken if layout is not None and layout.takes(name)}
