"""The layouts, and which of them a path is in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from convert.errors import SourceError

if TYPE_CHECKING:
    from convert.checkpoint import Checkpoint


def open_checkpoint(path: Path) -> tuple[str, Checkpoint]:
    """Open a checkpoint of whatever layout.

    Returns:
        "hf" or "gguf", and the checkpoint.

    Raises:
        SourceError, FormatError, MappingError: see `open_hf` and `open_gguf`.
    """
    from convert.layouts.gguf_source import open_gguf
    from convert.layouts.hf import open_hf

    if path.is_dir():
        return "hf", open_hf(path)
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder", "give a Hugging Face folder or a GGUF file")
    return "gguf", open_gguf(path)
