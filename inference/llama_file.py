"""A GGUF file loaded by llama.cpp: the handle that its vocabulary and its weights are reached by."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.errors import FormatError
from mconv.inference.amx import use_extra_buffers
from mconv.inference.header import check_header, read_header
from mconv.inference.llama_log import llama_log
from mconv.inference.openmp import spin_briefly

if TYPE_CHECKING:
    from mconv.convert.model.metadata import Metadata


class LlamaFile:
    """A loaded file; its memory is freed with the object, or earlier by `close`.

    Attributes:
        path: the file.
        provenance: the `general.*` keys of its metadata.
        api: the module llama_cpp.
        handle: what the functions of llama.cpp take as the model.
        log: llama.cpp's error lines.

    Args:
        path: the GGUF file; of a split model its first part.
        metadata: of the file, where its header has been read already.
        vocabulary_only: load no weights.

    Raises:
        OSError: the file cannot be opened.
        SourceError: it is truncated.
        FormatError: it is not GGUF, `mconv.inference.header` refuses it, or llama.cpp cannot load it; with the reason.
    """

    def __init__(self, path: Path, metadata: Metadata | None = None, *, vocabulary_only: bool = False) -> None:
        spin_briefly()
        import llama_cpp

        if metadata is None:
            metadata = read_header(path)
        check_header(path, metadata)
        self.path = path
        self.provenance = {key: value for key, value in metadata.items() if key.startswith("general.")}
        self.api: Any = llama_cpp
        self.log = llama_log()
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = not vocabulary_only and use_extra_buffers()
        params.vocab_only = vocabulary_only
        self.log.clear()
        self.handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise FormatError(
                f"{path}: llama.cpp cannot load it: {self.log.cause()}",
                "convert it again, or check that it was copied whole",
            )
        self._free = weakref.finalize(self, llama_cpp.llama_model_free, self.handle)
        self._free.atexit = False  # what is in use when the process ends goes with the process

    def close(self) -> None:
        """Free it now: nothing of it may be used any more."""
        self._free()
