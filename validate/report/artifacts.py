"""What an artifact is, in a line of a report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mconv.convert.containers.gguf_split import read_gguf_model
from mconv.convert.layouts import open_checkpoint, options_for
from mconv.convert.tensors.nodes import Tensor, stored_bytes
from mconv.quantize.filetypes import FileType


@dataclass(frozen=True)
class Artifact:
    """An artifact's size and type.

    Attributes:
        file: path as given.
        type: of a GGUF file, the name that llama.cpp has for it, such as Q4_K_M; of a folder, the type of most weights.
        bytes: of the file, or all parts of a split one; of a folder, of its tensors.
        bits_per_weight: of the tensors.
        parameters: number of weights.
    """

    file: str
    type: str
    bytes: int
    bits_per_weight: float
    parameters: int


def describe_artifact(path: Path, hf_config: Path | None = None) -> Artifact:
    """Read an artifact's headers.

    Raises:
        OSError, SourceError, FormatError, MappingError: it cannot be read.
    """
    if path.is_dir():
        checkpoint = open_checkpoint(path, **options_for(path, hf_config=hf_config))
        return _artifact(path, list(checkpoint.tensors.values()), None, None)
    path.stat()  # names the file that is missing
    file = read_gguf_model(path)
    number = file.metadata.get("general.file_type")
    named = {kind.number: kind.name for kind in FileType}
    size = sum(part.stat().st_size for part in {tensor.file.path for tensor in file.tensors} | {path})
    return _artifact(path, list(file.tensors), named.get(number.content) if number else None, size)


def _artifact(path: Path, tensors: list[Tensor], kind: str | None, size: int | None) -> Artifact:
    data = sum(map(stored_bytes, tensors))
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    by_type: dict[str, int] = {}
    for tensor in tensors:
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + math.prod(tensor.shape)
    most = max(by_type, key=lambda name: by_type[name])
    return Artifact(str(path), kind or most, data if size is None else size, 8 * data / weights, weights)
