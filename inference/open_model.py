"""Load a model of any layout from a path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mconv.inference.language_model import LanguageModel


def open_model(path: Path, threads: int | None = None, **reading: Any) -> LanguageModel:
    """Load a model.

    Args:
        path: a GGUF file (of a split model its first part), a Hugging Face folder, or a Megatron folder.
        threads: threads to work with; None takes every usable core.
        reading: read options of layouts, see `open_checkpoint`; those of other layouts than the path's are left out.

    Raises:
        OSError: the file cannot be opened.
        SourceError, FormatError, MappingError: it cannot be loaded.
        UsageError: torch or transformers, which are needed for folders, are not installed.
    """
    from mconv.convert.layouts import open_checkpoint, options_for

    if layout_of(path) == "gguf":
        from mconv.inference.llama_cpp_model import LlamaCppModel

        return LlamaCppModel(path, threads)
    from mconv.inference.transformers_model import TransformersModel

    return TransformersModel(open_checkpoint(path, **options_for(path, **reading)), threads)


def layout_of(path: Path) -> str:
    """The name of the layout of a path; a path that does not exist is treated as a GGUF file."""
    from mconv.convert.layouts import detect_layout

    return detect_layout(path).name if path.exists() else "gguf"
