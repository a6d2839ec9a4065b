"""Importance matrices: for each column of a weight matrix, the mean square of its inputs in the calibration text.

Both formats of llama-imatrix are supported, and give the float32 values that llama-quantize works with
(llama.cpp common/imatrix-loader.cpp, tools/quantize/quantize.cpp `load_imatrix`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from mconv.convert.containers.gguf import GgufFile, read_gguf
from mconv.convert.documents import open_regular
from mconv.convert.errors import FormatError, QuantizationError, SourceError
from mconv.convert.layouts.gguf.names import role_of
from mconv.convert.model.metadata import Metadata, ValueType, string, uint32
from mconv.convert.model.roles import Role
from mconv.convert.tensors.files import SourceFile
from mconv.convert.tensors.nodes import FileTensor, row_count
from mconv.convert.tensors.plain import plain

_RECREATE_HINT = (
    "the file is damaged or is not an importance matrix; copy it again, or make it again with llama-imatrix"
)
_STRING_BYTES = 127
"""Size of llama-quantize's buffer for a metadata string, in bytes."""
_LARGEST_SUM = 1e20
"""Far more than real activations add up to, and small enough for the float32 sums in ggml's searches."""


@dataclass(frozen=True)
class ImportanceMatrix:
    """The importance of the columns of each tensor.

    Attributes:
        file_name: name of the file it was read from, without folders.
        entries: GGUF tensor name to float32 (experts * columns,), none negative; one expert after the other.
        datasets: names of the calibration texts.
        if role_of(name) is Role.TOKEN_EMBEDDING:
            # The calibration used a tied embedding as the output matrix, transposed: llama-quantize ignores it too.
    """

    file_name: str
    entries: dict[str, np.ndarray]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    file: SourceFile | None = None

    def importance_of(self, name: str, shape: tuple[int, ...]) -> TensorImportance | None:
        """`weights_of` as plain data, for a plan; None if the matrix does not say.

        Raises:
            QuantizationError: there is an entry, but of another size.
        """
        if self.weights_of(name, shape) is None or self.file is None:
            return None
        return TensorImportance(self.file, name, shape)

    def weights_of(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """The importance of the columns of a tensor; None if the matrix has no entry for it.

        Args:
            name: GGUF name of the tensor.
            shape: its shape, slowest axis first; a third axis counts experts.

        Returns:
            float32 (experts, columns), with one expert for a plain matrix.

        Raises:
            QuantizationError: the entry has another size than the tensor.
        """
        values = self.entries.get(name)
        if values is None:
            return None
        experts, columns = math.prod(shape[:-2]), shape[-1]
        if values.size == experts * columns:
            return values.reshape(experts, columns)
        if role_of(name) is Role.TOKEN_EMBEDDING:
            # The calibration used a tied embedding as the output matrix, transposed: llama-quantize ignores it too.
            return None
        raise QuantizationError(
            f"{self.file_name}: the entry of {name} has {values.size} values, but the tensor needs {experts * columns}",
            "use the importance matrix that was computed for this model",
        )

    def metadata(self) -> Metadata:
        """The metadata of a file quantized with this matrix, as llama-quantize writes it.

        One difference: paths are shortened to their last part.
        """
        keys: Metadata = {"quantize.imatrix.file": string(_cut(self.file_name))}
        if self.datasets:
            keys["quantize.imatrix.dataset"] = string(_cut(_without_absolute_folder(self.datasets[0])))
        keys["quantize.imatrix.entries_count"] = uint32(len(self.entries))
        if self.chunks > 0:
            keys["quantize.imatrix.chunks_count"] = uint32(self.chunks)
        return keys


@plain
@dataclass(frozen=True)
class TensorImportance:
    """The importance of a tensor's columns, as a place in a file: an `Importance` (see `convert.engine.plan`).

    Attributes:
        file: the importance matrix.
        name: GGUF name of the tensor.
        shape: its shape, slowest axis first.
    """

    file: SourceFile
    name: str
    shape: tuple[int, ...]

    def of_row(self, row: int) -> np.ndarray:
        """The importance of the columns in a row, float32 (columns,).

        Raises:
            FormatError, SourceError: see `read_imatrix`; the file may have changed since the plan was made.
        """
        weights = _read_once(self.file).weights_of(self.name, self.shape)
        if weights is None:
            raise SourceError(f"{self.file.path.name}: {self.name} is gone", "make the plan anew")
        return weights[row // self.shape[-2]]


@lru_cache(maxsize=2)
def _read_once(file: SourceFile) -> ImportanceMatrix:
    file.check_unchanged()
    return read_imatrix(file.path)


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read an importance matrix, in GGUF or in the older format (.dat).

    Raises:
        FormatError: the file breaks the rules of its format, or holds a value that cannot be a sum of squares.
        SourceError: a GGUF file is shorter than its header claims, or it is not a regular file.
    """
    with open_regular(path) as file:
        is_gguf = file.read(4) == b"GGUF"
    matrix = _read_gguf(path) if is_gguf else _read_legacy(path)
    return replace(matrix, file=SourceFile.at(path))


def _require_sums_of_squares(path: Path, name: str, sums: np.ndarray) -> None:
    # llama-imatrix writes nothing else, and with other values ggml may abort the process.
    if not ((sums >= 0) & (sums <= _LARGEST_SUM)).all():
        raise FormatError(
            f"{path.name}: the entry of {name} holds a value that is not a sum of squares", _RECREATE_HINT
        )


def _read_gguf(path: Path) -> ImportanceMatrix:
    file = read_gguf(path)
    sums = _tensors_with_suffix(file, ".in_sum2")
    counts = _tensors_with_suffix(file, ".counts")
    if not sums or sums.keys() != counts.keys():
        odd = min(sums.keys() ^ counts.keys(), default="any tensor")
        raise FormatError(f"{path.name}: .in_sum2 or .counts is missing for {odd}", _RECREATE_HINT)
    entries = {name: _mean(path, name, _values(path, sums[name]), _values(path, counts[name])) for name in sums}
    datasets, chunks = file.metadata.get("imatrix.datasets"), file.metadata.get("imatrix.chunk_count")
    if datasets is None or datasets.item_type is not ValueType.STRING:
        raise FormatError(f"{path.name}: imatrix.datasets is not a list of names", _RECREATE_HINT)
    if chunks is None or chunks.type is not ValueType.UINT32:
        raise FormatError(f"{path.name}: imatrix.chunk_count is not a 32-bit number", _RECREATE_HINT)
    return ImportanceMatrix(path.name, entries, tuple(map(_text, datasets.content)), chunks.content)


def _tensors_with_suffix(file: GgufFile, suffix: str) -> dict[str, FileTensor]:
    return {tensor.name.removesuffix(suffix): tensor for tensor in file.tensors if tensor.name.endswith(suffix)}


def _values(path: Path, tensor: FileTensor) -> np.ndarray:
    if tensor.dtype != "F32":
        raise FormatError(f"{path.name}: {tensor.name} is {tensor.dtype}, not F32", _RECREATE_HINT)
    return tensor.read(0, row_count(tensor.shape)).ravel()


def _mean(path: Path, name: str, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums of squares divided by the number of tokens, for each expert; ones for an expert that saw no token."""
    _require_sums_of_squares(path, name, sums)
    if sums.size % counts.size or not np.isfinite(counts).all():
        raise FormatError(f"{path.name}: the counts of {name} do not fit its sums", _RECREATE_HINT)
    tokens = np.floor(counts.astype(np.float64) + 0.5).astype(np.float32)[:, None]
    per_expert = sums.reshape(counts.size, -1)
    means = np.divide(per_expert, tokens, out=np.ones_like(per_expert), where=tokens > 0)
    return means.ravel()


def _text(content: str | bytes) -> str:
    return content if isinstance(content, str) else content.decode(errors="replace")


def _read_legacy(path: Path) -> ImportanceMatrix:
    cursor = _Cursor(path)
    entries: dict[str, np.ndarray] = {}
    for _ in range(cursor.positive("the number of entries")):
        name = cursor.text(cursor.positive("the length of a name"))
        calls = cursor.int32()
        sums = cursor.floats(cursor.positive(f"the number of values of {name}"))
        if name in entries:
            raise FormatError(f"{path.name}: {name} has two entries", _RECREATE_HINT)
        _require_sums_of_squares(path, name, sums)
        entries[name] = sums / np.float32(calls) if calls > 0 else sums
    # Older files end here; later ones describe the calibration.
    chunks = cursor.int32() if cursor.left else 0
    dataset_bytes = cursor.int32() if cursor.left else 0
    datasets = (cursor.text(dataset_bytes),) if dataset_bytes > 0 else ()
    return ImportanceMatrix(path.name, entries, datasets, max(chunks, 0))


class _Cursor:
    """Reads little-endian values one after the other, never past the end of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        size = path.stat().st_size
        self._bytes: np.ndarray[Any, np.dtype[np.uint8]] = (
            np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
        )
        self._position = 0

    @property
    def left(self) -> int:
        """Bytes left to read."""
        return self._bytes.size - self._position

    def _take(self, count: int) -> bytes:
        if count > self.left:
            raise FormatError(
                f"{self._path.name}: at byte {self._position} it claims {count} more bytes, but {self.left} are left",
                _RECREATE_HINT,
            )
        start = self._position
        self._position += count
        return self._bytes[start : self._position].tobytes()

    def int32(self) -> int:
        return int.from_bytes(self._take(4), "little", signed=True)

    def positive(self, what: str) -> int:
        value = self.int32()
        if value <= 0:
            raise FormatError(f"{self._path.name}: {what} is {value}", _RECREATE_HINT)
        return value

    def text(self, count: int) -> str:
        try:
            return self._take(count).decode()
        except UnicodeDecodeError:
            raise FormatError(f"{self._path.name}: a name is not UTF-8", _RECREATE_HINT) from None

    def floats(self, count: int) -> np.ndarray:
        return np.frombuffer(self._take(4 * count), "<f4").astype(np.float32)


def _cut(text: str) -> str:
    return text.encode()[:_STRING_BYTES].decode(errors="ignore")


def _without_absolute_folder(name: str) -> str:
    is_absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
    return PureWindowsPath(name).name if is_absolute else name
