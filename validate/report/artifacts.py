"""Type and size of an artifact, for a line of a report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mconv.convert.tensors.nodes import Tensor, stored_bytes
from mconv.quantize.filetypes import FileType
from mconv.validate.subject import Subject


@dataclass(frozen=True)
class Artifact:
    """An artifact's size and type.

    Attributes:
        file: path as given.
        type: for a GGUF file, llama.cpp's name of its type, such as Q4_K_M; for a folder, the type of most weights.
        bytes: size of the file, or of all parts of a split one; for a folder, of its tensors.
        bits_per_weight: bits of tensor data per weight.
        parameters: number of weights.
    """

    file: str
    type: str
    bytes: int
    bits_per_weight: float
    parameters: int


def describe_artifact(subject: Subject) -> Artifact:
    """Describe an artifact from its headers.

    Raises:
        OSError, SourceError, FormatError, MappingError: it cannot be read.
    """
    path = subject.path
    if not subject.is_gguf:
        return _artifact(path, list(subject.checkpoint.tensors.values()), None, None)
    file = subject.header
    number = file.metadata.get("general.file_type")
    named = {kind.number: kind.name for kind in FileType}
    size = sum(part.stat().st_size for part in {tensor.file.path for tensor in file.tensors} | {path.absolute()})
    return _artifact(path, list(file.tensors), named.get(number.content) if number else None, size)


def _artifact(path: Path, tensors: list[Tensor], kind: str | None, size: int | None) -> Artifact:
    data = sum(map(stored_bytes, tensors))
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    by_type: dict[str, int] = {}
    for tensor in tensors:
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + math.prod(tensor.shape)
    most = max(by_type, key=lambda name: by_type[name])
    return Artifact(str(path), kind or most, data if size is None else size, 8 * data / weights, weights)
