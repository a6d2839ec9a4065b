"""A GGUF file loaded by llama.cpp: the handle that gives access to its vocabulary and weights."""

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
    """A loaded file. Its memory is freed with the object, or earlier by `close`.

    Attributes:
        path: the file.
        provenance: the `general.*` keys of its metadata.
        api: the module llama_cpp.
        handle: the model pointer for the functions of llama.cpp.
        log: llama.cpp's error lines.

    Args:
        path: the GGUF file; for a split model, its first part.
        metadata: the metadata of the file, if its header has already been read.
        vocabulary_only: do not load the weights.

    Raises:
        OSError: the file cannot be opened.
        SourceError: it is truncated.
        FormatError: it is not GGUF, `mconv.inference.header` rejects it, or llama.cpp cannot load it.
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
                "convert it again, or check that the copy is complete",
            )
        self._free = weakref.finalize(self, llama_cpp.llama_model_free, self.handle)
        self._free.atexit = False  # at exit, the operating system frees it

    def close(self) -> None:
        """Free the memory now; the handle must not be used afterwards."""
        self._free()
