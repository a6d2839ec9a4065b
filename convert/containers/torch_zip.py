"""What torch.save writes: a zip of uncompressed entries, with a pickle that describes the value and the raw bytes of
each storage.

Format: torch caffe2/serialize/inline_container.cc: `NAME/data.pkl`, `NAME/data/KEY` for each storage,
`NAME/byteorder`, `NAME/version`. torch.distributed.checkpoint appends many such zips to one file. Neither reading nor
writing it needs torch.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mconv.convert.containers.pickles import (
    Persistent,
    global_name,
    is_name,
    make_record,
    named,
    read_pickle,
    write_pickle,
)
from mconv.convert.errors import FormatError, SourceError
from mconv.convert.tensors.files import SourceFile
from mconv.convert.tensors.nodes import FLOAT_DTYPES
from mconv.convert.tensors.plain import plain

STORAGES = {"F32": "torch FloatStorage", "F16": "torch HalfStorage", "BF16": "torch BFloat16Storage"}
"""The storage of each supported type."""

# A description of one tensor takes some two hundred bytes, Megatron-LM's arguments some tens of thousands.
_LARGEST_PICKLE = 64 << 20
_LOCAL_HEADER_BYTES = 30


class _Window(io.RawIOBase):
    """A range of a file, read like a file."""

    def __init__(self, file: SourceFile, start: int, length: int) -> None:
        self._file, self._start, self._length, self._place = file, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("before the start")
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._length - self._place))
        self._file.read_into(view[:count], self._start + self._place)
        self._place += count
        return count


@plain
@dataclass(frozen=True)
class StoredArray:
    """A tensor in a torch.save zip.

    Attributes:
        dtype: F32, F16 or BF16.
        shape: lengths of its axes.
        offset: the byte of the file where its values start.
        pitch: 0 if they are stored row by row; for a matrix stored column by column, the distance between columns in
            values.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    pitch: int = 0

    def rows(self, start: int, count: int) -> StoredArray:
        """A range of its rows."""
        step = 1 if self.pitch else math.prod(self.shape[1:])
        offset = self.offset + start * step * FLOAT_DTYPES[self.dtype].itemsize
        return replace(self, shape=(count, *self.shape[1:]), offset=offset)


class TorchZip:
    """A torch.save zip within a file: what it holds, and where the values of its tensors are stored.

    Args:
        file: the file.
        start, length: the range of the zip in the file.
        source: what it is, for messages.

    Attributes:
        value: builtins and Records (see `read_pickle`); a tensor is a Record too.

    Raises:
        SourceError, FormatError: the range is outside the file, is not such a zip, or its pickle is refused.
    """

    def __init__(self, file: SourceFile, start: int, length: int, source: str) -> None:
        self._file, self._start, self._length, self._source = file, start, length, source
        with _open_zip(file, start, length, source) as archive:
            # The folder within the zip is the name of the file that was saved.
            self._entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            self.value = self._description(archive)

    def array(self, tensor: Any) -> StoredArray:
        """Where the values of a tensor are stored.

        Args:
            tensor: a part of the value.

        Raises:
            FormatError: it is not a contiguous tensor of a float type.
        """
        while is_name(tensor, "torch._utils _rebuild_parameter") and tensor.arguments:
            tensor = tensor.arguments[0]
        try:
            (_, storage, key, _, _), first, shape, strides, *_ = tensor.arguments
            shape, strides = tuple(shape), tuple(strides)
            dtype = next(dtype for dtype, name in STORAGES.items() if name == global_name(storage))
            entry = self._entries[f"data/{key}"]
        except (AttributeError, TypeError, ValueError, KeyError, StopIteration) as error:
            raise FormatError(
                f"{self._source}: not a tensor of a supported type", f"supported are {', '.join(STORAGES)}"
            ) from error
        itemsize = FLOAT_DTYPES[dtype].itemsize
        if not is_name(tensor, "torch._utils _rebuild_tensor_v2") or not _is_contiguous(first, shape, strides):
            raise FormatError(f"{self._source}: its values are not stored row by row", "save the checkpoint again")
        inside = first * itemsize
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if not stored or inside + math.prod(shape) * itemsize > entry.file_size:
            raise FormatError(f"{self._source}: its values are compressed or truncated", "copy the checkpoint again")
        header = self._start + entry.header_offset
        values = header + _header_bytes(self._file, header)
        if values + entry.file_size > self._start + self._length:
            raise FormatError(f"{self._source}: its values are truncated", "copy the checkpoint again")
        return StoredArray(dtype, shape, values + inside)

    def _description(self, archive: zipfile.ZipFile) -> Any:
        if "byteorder" in self._entries and self._content(archive, "byteorder") != b"little":
            raise FormatError(
                f"{self._source}: its values are big-endian", "save the checkpoint again on a little-endian machine"
            )
        return read_pickle(self._content(archive, "data.pkl"), self._source, persistent=lambda key: key)

    def _content(self, archive: zipfile.ZipFile, name: str) -> bytes:
        entry = self._entries.get(name)
        # torch does not compress, so no entry is larger than the file.
        if entry is None or entry.compress_type != zipfile.ZIP_STORED or entry.file_size > _LARGEST_PICKLE:
            raise FormatError(
                f"{self._source}: its entry {name} is missing or cannot be read", "copy the checkpoint again"
            )
        try:
            return archive.read(entry)
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
            raise FormatError(
                f"{self._source}: not a file of torch.save ({error})", "copy the checkpoint again"
            ) from error


def _is_contiguous(first: Any, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> bool:
    """Whether these are valid numbers, and mean that the values are stored row by row."""
    if len(strides) != len(shape) or any(type(number) is not int or number < 0 for number in (first, *shape, *strides)):
        return False
    steps = (math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return all(stride == step or size < 2 for stride, step, size in zip(strides, steps, shape, strict=True))


def _open_zip(file: SourceFile, start: int, length: int, source: str) -> zipfile.ZipFile:
    if start < 0 or length < 0 or start + length > file.size:
        raise SourceError(
            f"{source} ends at byte {start + length} of {file.path.name}, which has only {file.size}",
            "the file is truncated; copy the checkpoint again",
        )
    try:
        return zipfile.ZipFile(io.BufferedReader(_Window(file, start, length)))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FormatError(
            f"{source}: not a file of torch.save ({error})",
            "copy the checkpoint again; formats before torch 1.6 are not supported",
        ) from error


def _header_bytes(file: SourceFile, offset: int) -> int:
    """Length of a local header, whose name and extra field differ from the central directory's."""
    header = bytearray(_LOCAL_HEADER_BYTES)
    file.read_into(memoryview(header), offset)
    return _LOCAL_HEADER_BYTES + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


@plain
@dataclass(frozen=True)
class TensorZip:
    """What torch.save writes around the values of one tensor: an `Envelope` (see `mconv.convert.engine.plan`).

    Attributes:
        dtype: F32, F16 or BF16.
        shape: lengths of the axes; the values are stored row by row.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def before(self) -> int:
        """Bytes before the values."""
        return len(self.seal(0)[0])

    @property
    def after(self) -> int:
        """Bytes after the values."""
        return len(self.seal(0)[1])

    def seal(self, checksum: int) -> tuple[bytes, bytes]:
        """The bytes before and after values with this CRC-32."""
        count = math.prod(self.shape)
        steps = tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        storage = Persistent(("storage", named(STORAGES[self.dtype]), "0", "cpu", count))
        hooks = make_record("collections OrderedDict")
        value = make_record("torch._utils _rebuild_tensor_v2", storage, 0, self.shape, steps, False, hooks)
        return _zip_around(value, (count * FLOAT_DTYPES[self.dtype].itemsize, checksum))


def encode_torch_object(value: Any) -> bytes:
    """What torch.save writes for builtins and Records."""
    return b"".join(_zip_around(value, None))


def _zip_around(value: Any, data: tuple[int, int] | None) -> tuple[bytes, bytes]:
    """A zip of uncompressed entries: its bytes before and after the content of one entry, of which `data` gives size
    and CRC-32.

    Format: PKWARE's APPNOTE.TXT, 4.3.7 (local header), 4.3.12 (central directory) and 4.3.16 (its end). Sizes fit into
    32 bits: a chunk is some megabytes. zipfile writes an entry at once, but chunks are written in pieces.
    """
    entries: list[tuple[str, bytes]] = [("data.pkl", write_pickle(value)), ("byteorder", b"little")]
    if data is not None:
        entries.append(("data/0", b""))
    entries.append(("version", b"3\n"))
    halves, directory = [bytearray(), bytearray()], bytearray()
    half = offset = 0
    for name, content in entries:
        path = f"archive/{name}".encode()
        elsewhere = data is not None and name == "data/0"
        size, checksum = data if data and elsewhere else (len(content), zlib.crc32(content))
        # Version 2.0, no flags, uncompressed, the earliest date that the format can express.
        common = struct.pack("<HHHHHLLLHH", 20, 0, 0, 0, 0x21, checksum, size, size, len(path), 0)
        halves[half] += b"PK\3\4" + common + path + content
        directory += b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHLL", 0, 0, 0, 0, offset) + path
        offset += _LOCAL_HEADER_BYTES + len(path) + size
        half += elsewhere
    end = struct.pack("<HHHHLLH", 0, 0, len(entries), len(entries), len(directory), offset, 0)
    halves[half] += directory + b"PK\5\6" + end
    return bytes(halves[0]), bytes(halves[1])


def open_file(path: Path) -> SourceFile:
    """A file of the checkpoint, opened.

    Raises:
        SourceError: the file does not exist.
    """
    if not path.is_file():
        raise SourceError(f"{path.name}: no such file in {path.parent}", "copy the whole checkpoint")
    return SourceFile.at(path)
