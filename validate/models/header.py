"""What llama.cpp takes on faith in a GGUF header: it ends the process where one of these is wrong."""

from __future__ import annotations

import math
from pathlib import Path

from convert.errors import FormatError
from convert.layouts.gguf_file import read_gguf
from convert.metadata import Metadata

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS, llama.cpp src/llama-hparams.h
NO_VOCABULARY = ("no_vocab", "none")  # llama.cpp src/llama-vocab.cpp, llama_vocab::impl::load


def check_header(path: Path) -> None:
    """Refuse a file whose header would end the process.

    Args:
        path: the GGUF file; of a split model its first part.

    Raises:
        OSError: the file cannot be opened.
        SourceError: it is shorter than its header claims.
        FormatError: it is not GGUF, has no vocabulary, or has a value that llama.cpp aborts on.
    """
    path.stat()  # names the file that is missing, as any other error of the operating system does
    metadata = read_gguf(path).metadata
    _check_vocabulary(path, metadata)
    _check_layers(path, metadata)
    _check_epsilons(path, metadata)


def _check_vocabulary(path: Path, metadata: Metadata) -> None:
    model = metadata.get("tokenizer.ggml.model")
    if model and model.content in NO_VOCABULARY:
        raise FormatError(f"{path}: the file has no vocabulary", "give a model with its tokenizer in the file")


def _check_layers(path: Path, metadata: Metadata) -> None:
    architecture = metadata.get("general.architecture")
    layers = metadata.get(f"{architecture.content}.block_count") if architecture else None
    if layers and isinstance(layers.content, int) and not 1 <= layers.content <= MAX_LAYERS:
        raise FormatError(
            f"{path}: block_count is {layers.content}", f"llama.cpp runs 1 to {MAX_LAYERS} layers; convert it again"
        )


def _check_epsilons(path: Path, metadata: Metadata) -> None:
    for key, value in metadata.items():
        if key.endswith("_epsilon") and isinstance(value.content, float) and not 0 <= value.content < math.inf:
            raise FormatError(
                f"{path}: {key} is {value.content}", "it has to be finite and not negative; convert again"
            )
