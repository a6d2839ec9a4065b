"""Check values in a GGUF header that llama.cpp does not check: with a wrong one, it ends the process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mconv.convert.containers.gguf import read_gguf
from mconv.convert.errors import FormatError
from mconv.convert.layouts.gguf.architecture import full_key
from mconv.convert.model.fields import EXPERTS, EXPERTS_PER_TOKEN, LAYERS, Field
from mconv.convert.model.metadata import Metadata
from mconv.convert.model.spec import MAX_EXPERTS, MAX_LAYERS

NO_VOCABULARY = ("no_vocab", "none")  # llama.cpp src/llama-vocab.cpp, llama_vocab::impl::load


def read_header(path: Path) -> Metadata:
    """The metadata of a GGUF file; of a split model, of its first part.

    Raises:
        OSError: the file cannot be opened.
        SourceError: it is shorter than its header claims.
        FormatError: it is not GGUF.
    """
    path.stat()  # raises an error with the file name if the file is missing
    return read_gguf(path).metadata


def check_header(path: Path, metadata: Metadata) -> None:
    """Reject a file whose header would make llama.cpp end the process.

    Args:
        path: the file, for messages.
        metadata: the metadata in its header.

    Raises:
        FormatError: it has no vocabulary, or a value that llama.cpp aborts on.
    """
    _check_vocabulary(path, metadata)
    _check_layers(path, metadata)
    _check_experts(path, metadata)
    _check_epsilons(path, metadata)


def _check_vocabulary(path: Path, metadata: Metadata) -> None:
    model = metadata.get("tokenizer.ggml.model")
    if model and model.content in NO_VOCABULARY:
        raise FormatError(f"{path}: the file has no vocabulary", "give a model with its tokenizer in the file")


def _check_layers(path: Path, metadata: Metadata) -> None:
    layers = _hyperparameter(metadata, LAYERS, 1)
    if isinstance(layers, int) and not 1 <= layers <= MAX_LAYERS:
        raise FormatError(
            f"{path}: {LAYERS.gguf[0]} is {layers}", f"llama.cpp runs 1 to {MAX_LAYERS} layers; convert the model again"
        )


def _check_experts(path: Path, metadata: Metadata) -> None:
    experts, used = (_hyperparameter(metadata, field, 0) for field in (EXPERTS, EXPERTS_PER_TOKEN))
    if not isinstance(experts, int) or not isinstance(used, int):  # one value per layer
        return
    if not (0 < used <= experts <= MAX_EXPERTS or experts == used == 0):
        raise FormatError(
            f"{path}: {EXPERTS.gguf[0]} is {experts} and {EXPERTS_PER_TOKEN.gguf[0]} {used}",
            f"llama.cpp supports up to {MAX_EXPERTS} experts, and uses some or all of them; convert the model again",
        )


def _hyperparameter(metadata: Metadata, field: Field, default: int) -> Any:
    architecture = metadata.get("general.architecture")
    value = metadata.get(full_key(field.gguf[0], architecture.content)) if architecture else None
    return value.content if value else default


def _check_epsilons(path: Path, metadata: Metadata) -> None:
    for key, value in metadata.items():
        if key.endswith("_epsilon") and isinstance(value.content, float) and not 0 <= value.content < math.inf:
            raise FormatError(
                f"{path}: {key} is {value.content}", "it must be finite and not negative; convert the model again"
            )
