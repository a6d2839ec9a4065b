"""Two GGUF files side by side: every tensor's place, type, shape and bytes."""

from __future__ import annotations

from pathlib import Path

from mconv.convert.containers.gguf import GgufFile, read_gguf
from mconv.convert.tensors.nodes import FileTensor, row_count

MODEL_KEYS = frozenset({"general.architecture", "general.type", "general.file_type", "general.quantization_version"})
"""What `general.` says of the model; the rest is where it comes from."""


def data(tensor: FileTensor) -> bytes:
    """All bytes of a tensor."""
    return tensor.read(0, row_count(tensor.shape)).tobytes()


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    """Require the same tensors in the same order, byte for byte."""
    mine, other = read_gguf(ours), read_gguf(theirs)
    assert listing(mine) == listing(other)
    differing = [a.name for a, b in zip(mine.tensors, other.tensors, strict=True) if data(a) != data(b)]
    assert differing == []


def listing(file: GgufFile) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of each tensor, in order."""
    return [(tensor.name, tensor.dtype, tensor.shape) for tensor in file.tensors]


def differing_keys(ours: Path, theirs: Path) -> dict[str, tuple[object, object]]:
    """Metadata that differs, the provenance under `general.` and `mconv.` aside."""
    mine, other = read_gguf(ours).metadata, read_gguf(theirs).metadata
    keys = {key for key in {*mine, *other} if key in MODEL_KEYS or not key.startswith(("general.", "mconv."))}
    return {key: (mine.get(key), other.get(key)) for key in sorted(keys) if mine.get(key) != other.get(key)}
