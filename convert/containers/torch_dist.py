"""The container under Megatron-Core's torch_dist checkpoints: torch.distributed.checkpoint, read without torch.

Format: torch torch/distributed/checkpoint/metadata.py and filesystem.py. `.metadata` is a pickle that lists, for every
tensor, its chunks (offsets and sizes within the whole), and for every chunk the file, offset and length of a torch.save
zip. Only the chunks show how the ranks of a training run split a tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mconv.convert.containers.pickles import global_name, is_name, read_pickle
from mconv.convert.containers.torch_zip import StoredArray, TorchZip, open_file
from mconv.convert.errors import FormatError, SourceError
from mconv.convert.tensors.files import SourceFile
from mconv.convert.tensors.nodes import FLOAT_DTYPES, row_length
from mconv.convert.tensors.plain import plain

INDEX = ".metadata"

_METADATA = "torch.distributed.checkpoint.metadata "
DTYPES = {"torch float32": "F32", "torch float16": "F16", "torch bfloat16": "BF16"}
"""torch's name of each float type, and ours."""


@plain
@dataclass(frozen=True)
class Blob:
    """A torch.save zip within a file."""

    file: SourceFile
    offset: int
    length: int
    source: str

    @cached_property
    def tensor(self) -> StoredArray:
        """Where its values are stored."""
        zipped = TorchZip(self.file, self.offset, self.length, self.source)
        return zipped.array(zipped.value)

    def value(self) -> Any:
        """What it holds, if it is not a tensor."""
        return TorchZip(self.file, self.offset, self.length, self.source).value


class Stored(Protocol):
    """Values somewhere in a file.

    Attributes:
        file: the file.
        source: what they are, for messages.
        tensor: where they are stored, found on first use.
    """

    @property
    def file(self) -> SourceFile: ...
    @property
    def source(self) -> str: ...
    @property
    def tensor(self) -> StoredArray: ...


@plain
@dataclass(frozen=True)
class Chunk:
    """A block of a tensor: where it starts in the whole, its lengths, and where its values are."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    blob: Stored


@plain
@dataclass(frozen=True)
class ChunkedTensor:
    """A tensor in chunks, as the index lists it; its dtype is in FLOAT_DTYPES, or torch's name of another type."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@plain
@dataclass(frozen=True)
class TensorSlice:
    """The part of a chunked tensor with its leading axes fixed: one layer of a stack, or one expert of it.

    A `Tensor` (see `mconv.convert.tensors.nodes`); its rows may come from chunks split by rows and by columns.
    """

    name: str
    whole: ChunkedTensor
    leading: tuple[int, ...]
    position: tuple[int, int]

    @property
    def dtype(self) -> str:
        """F32, F16 or BF16."""
        return self.whole.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The remaining axes."""
        return self.whole.shape[len(self.leading) :]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop).

        Raises:
            SourceError: some of them are in no chunk, or the file is truncated.
            FormatError: a chunk contradicts the index, or two chunks overlap.
        """
        rows = np.empty((stop - start, row_length(self.shape)), FLOAT_DTYPES[self.dtype])
        filled = 0
        for chunk, matrix in self._chunks:
            filled += self._copy(chunk, matrix, start, stop, rows)
        if filled != rows.size:
            raise SourceError(
                f"tensor {self.name}: the chunks hold {filled} of {rows.size} values of its rows {start} to {stop}",
                "the checkpoint is incomplete; copy the files of every rank",
            )
        return rows

    @cached_property
    def _chunks(self) -> list[tuple[Chunk, int]]:
        """The chunks that hold parts of it, and the number of its matrix within each."""
        found = []
        for chunk in self.whole.chunks:
            stack = list(zip(self.leading, chunk.start, chunk.shape, strict=False))
            if all(first <= at < first + length for at, first, length in stack):
                matrix = 0
                for at, first, length in stack:
                    matrix = matrix * length + (at - first)
                found.append((chunk, matrix))
        if any(_overlap(one, other) for (one, _), (other, _) in combinations(found, 2)):
            raise FormatError(f"{INDEX}: chunks of {self.name} overlap", "copy the checkpoint again")
        return found

    def _copy(self, chunk: Chunk, matrix: int, start: int, stop: int, rows: np.ndarray) -> int:
        """Copy the part of rows [start, stop) that the chunk holds; returns the number of values copied."""
        depth = len(self.leading)
        first_row, *column = chunk.start[depth:] or (0,)
        height, *width = chunk.shape[depth:] or (1,)
        low, high = max(start, first_row), min(stop, first_row + height)
        if low >= high:
            return 0
        left, columns = (column or [0])[0], (width or [1])[0]
        stored = chunk.blob.tensor
        if stored.shape != chunk.shape or stored.dtype != self.dtype:
            raise FormatError(
                f"{chunk.blob.source} holds {list(stored.shape)} of {stored.dtype}, "
                f"but {INDEX} says {list(chunk.shape)} of {self.dtype}",
                "the files belong to different checkpoints; copy the checkpoint again",
            )
        wanted = rows[low - start : high - start, left : left + columns]
        if stored.pitch:
            block = np.empty((columns, high - low), rows.dtype)
            for number, values in enumerate(block):
                offset = stored.offset + (number * stored.pitch + low - first_row) * rows.itemsize
                chunk.blob.file.read_into(values.data.cast("B"), offset)
            wanted[:] = block.T
            return block.size
        offset = stored.offset + (matrix * height + low - first_row) * columns * rows.itemsize
        if columns == rows.shape[1]:
            chunk.blob.file.read_into(wanted.data.cast("B"), offset)
        else:
            block = np.empty((high - low, columns), rows.dtype)
            chunk.blob.file.read_into(block.data.cast("B"), offset)
            wanted[:] = block
        return wanted.size


def _overlap(one: Chunk, other: Chunk) -> bool:
    """Whether two chunks of a tensor overlap, so that other values are missing."""
    sides = zip(one.start, one.shape, other.start, other.shape, strict=True)
    return all(first < start + length and start < first + size for first, size, start, length in sides)


@dataclass(frozen=True)
class DistributedCheckpoint:
    """An index: the tensors, and the objects that are not tensors, by key."""

    tensors: dict[str, ChunkedTensor]
    objects: dict[str, Blob]


def read_index(folder: Path) -> DistributedCheckpoint:
    """Read `.metadata`, and compare every range in it with the files.

    Raises:
        SourceError: a file is missing, or shorter than the index claims.
        FormatError: the index is damaged, or its pickle uses a name that is not allowed.
    """
    try:
        data = (folder / INDEX).read_bytes()
    except OSError as error:
        raise SourceError(
            f"{folder / INDEX}: {error.strerror}", "give the folder of a torch_dist checkpoint"
        ) from error
    index = read_pickle(data, INDEX)
    try:
        return _Index(folder, index).read()
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise FormatError(f"{INDEX}: unexpected structure ({error!r})", "copy the checkpoint again") from error


class _Index:
    def __init__(self, folder: Path, index: Any) -> None:
        self._folder = folder
        self._index = index
        self._files: dict[str, SourceFile] = {}

    def read(self) -> DistributedCheckpoint:
        blobs: dict[str, dict[tuple[int, ...] | None, Blob]] = {}
        for place, info in self._index.state["storage_data"].items():
            key, offset = _text(place.attribute("fqn")), place.attribute("offset")
            blobs.setdefault(key, {})[None if offset is None else _size(offset)] = self._blob(key, info)
        tensors, objects = {}, {}
        for key, entry in self._index.state["state_dict_metadata"].items():
            if is_name(entry, _METADATA + "TensorStorageMetadata"):
                tensors[key] = self._tensor(_text(key), entry, blobs.get(key, {}))
            elif key in blobs:
                objects[key] = blobs[key][None]
        return DistributedCheckpoint(tensors, objects)

    def _tensor(self, key: str, entry: Any, blobs: dict[tuple[int, ...] | None, Blob]) -> ChunkedTensor:
        name = global_name(entry.attribute("properties").state[0])
        shape = _size(entry.attribute("size"))
        chunks = []
        for listed in entry.attribute("chunks"):
            start, lengths = _size(listed.attribute("offsets")), _size(listed.attribute("sizes"))
            inside = len(start) == len(lengths) == len(shape) and all(
                first + length <= axis for first, length, axis in zip(start, lengths, shape, strict=True)
            )
            if not inside:
                raise FormatError(f"{INDEX}: a chunk of {key} is outside the tensor", "copy the checkpoint again")
            if start not in blobs:
                raise SourceError(f"{INDEX}: no file is listed for a chunk of {key}", "copy the checkpoint again")
            chunks.append(Chunk(start, lengths, blobs[start]))
        if sum(math.prod(chunk.shape) for chunk in chunks) != math.prod(shape):
            raise SourceError(
                f"{INDEX}: the chunks of {key} do not cover the tensor",
                "the checkpoint is incomplete; copy the files of every rank",
            )
        return ChunkedTensor(key, DTYPES.get(name, name), shape, tuple(chunks))

    def _blob(self, key: str, info: Any) -> Blob:
        path, offset, length = (info.attribute(name) for name in ("relative_path", "offset", "length"))
        if info.attribute("transform_descriptors"):
            raise FormatError(f"{INDEX}: {key} is compressed", "save the checkpoint without a compression extension")
        if Path(_text(path)).name != path or path in ("", ".", ".."):
            raise SourceError(f"{INDEX}: {path!r} is outside the folder", "do not use this checkpoint")
        if path not in self._files:
            self._files[path] = open_file(self._folder / path)
        file = self._files[path]
        if type(offset) is not int or type(length) is not int:
            raise ValueError("an offset or length is not a number")
        if offset < 0 or offset + length > file.size:
            raise SourceError(
                f"{path}: {key} ends at byte {offset + length}, but the file has {file.size}",
                "the file is truncated; copy the checkpoint again",
            )
        return Blob(file, offset, length, f"{path}, {key}")


def _size(size: Any) -> tuple[int, ...]:
    """A torch.Size of a pickle."""
    if not is_name(size, "torch Size"):
        raise ValueError("a size is missing")
    lengths = tuple(size.arguments[0])
    if any(type(length) is not int or length < 0 for length in lengths):
        raise ValueError("a size is not a list of lengths")
    return lengths


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a name is not a string")
    return value
