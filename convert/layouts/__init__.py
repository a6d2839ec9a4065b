"""The layouts, and which of them a path is in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.errors import SourceError, UsageError

if TYPE_CHECKING:
    from mconv.convert.model.checkpoint import Checkpoint


def open_checkpoint(path: Path, hf_config: Path | None = None) -> tuple[str, Checkpoint]:
    """Open a checkpoint of whatever layout.

    Args:
        hf_config: see `open_megatron`; nothing else has use for it.

    Returns:
        "hf", "megatron" or "gguf", and the checkpoint.

    Raises:
        SourceError, FormatError, MappingError: see `open_hf`, `open_megatron` and `open_gguf`.
        UsageError: `hf_config` for another layout than Megatron's.
    """
    from mconv.convert.layouts.gguf.reader import open_gguf
    from mconv.convert.layouts.hf.reader import open_hf
    from mconv.convert.layouts.megatron.reader import is_megatron, open_megatron

    if not path.exists():
        raise SourceError(f"{path}: no such file or folder", "give a folder of a checkpoint, or a GGUF file")
    if is_megatron(path):
        return "megatron", open_megatron(path, hf_config)
    if hf_config is not None:
        raise UsageError(f"{path} is no Megatron checkpoint", "leave --hf-config out")
    if path.is_dir():
        return "hf", open_hf(path)
    return "gguf", open_gguf(path)
