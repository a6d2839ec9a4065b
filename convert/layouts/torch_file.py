"""What torch.save writes: a zip of stored entries, a pickle that describes the value and the raw bytes of each storage.

Format: torch caffe2/serialize/inline_container.cc: `NAME/data.pkl`, `NAME/data/KEY` for each storage,
`NAME/byteorder`, `NAME/version`. torch.distributed.checkpoint appends many such zips to one file. Neither reading nor
writing needs torch.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from convert.errors import FormatError, SourceError
from convert.layouts.pickles import Persistent, global_name, is_name, make_record, named, read_pickle, write_pickle
from convert.tensors import SourceFile

STORAGES = {"F32": "torch FloatStorage", "F16": "torch HalfStorage", "BF16": "torch BFloat16Storage"}
"""Names of the storages whose tensors can be carried, by dtype."""

# A description of one tensor takes some two hundred bytes, Megatron-LM's arguments some tens of thousands.
_LARGEST_PICKLE = 64 << 20
_LOCAL_HEADER_BYTES = 30


class _Window(io.RawIOBase):
    """A range of a file as a file of its own."""

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


@dataclass(frozen=True)
class StoredArray:
    """A tensor in a torch.save zip: dtype (F32, F16, BF16), shape, and the byte of the file where its values start."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


def read_torch_object(file: SourceFile, start: int, length: int, source: str) -> Any:
    """The value of a torch.save zip, tensors within it as Records (see `read_pickle`).

    Raises:
        SourceError, FormatError: the range is outside the file, no such zip, or its pickle is refused.
    """
    with _open_zip(file, start, length, source) as archive:
        return _description(archive, source, persistent=lambda _: None)


def read_torch_tensor(file: SourceFile, start: int, length: int, source: str) -> StoredArray:
    """Where the values of the one tensor of a torch.save zip lie.

    Raises:
        SourceError, FormatError: as `read_torch_object`; or it is no contiguous tensor of a float type.
    """
    with _open_zip(file, start, length, source) as archive:
        value = _description(archive, source, persistent=lambda key: key)
        try:
            (_, storage, key, _, _), first, shape, strides, *_ = value.arguments
            shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
            dtype = next(dtype for dtype, name in STORAGES.items() if name == global_name(storage))
            entry = _entry(archive, f"data/{key}")
        except (AttributeError, TypeError, ValueError, KeyError, StopIteration) as error:
            raise FormatError(
                f"{source}: no tensor of a type that can be carried", f"supported: {', '.join(STORAGES)}"
            ) from error
        itemsize = 4 if dtype == "F32" else 2
        steps = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        bent = any(stride != step for stride, step, size in zip(strides, steps, shape, strict=True) if size > 1)
        if not is_name(value, "torch._utils _rebuild_tensor_v2") or bent:
            raise FormatError(f"{source}: its values do not lie row after row", "save the checkpoint again")
        inside = first * itemsize
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if not stored or inside < 0 or inside + math.prod(shape) * itemsize > entry.file_size:
            raise FormatError(f"{source}: its values are compressed or cut off", "get the checkpoint again")
        values = start + entry.header_offset + _header_bytes(file, start + entry.header_offset)
        if values + entry.file_size > start + length:
            raise FormatError(f"{source}: its values are cut off", "get the checkpoint again")
        return StoredArray(dtype, shape, values + inside)


def _open_zip(file: SourceFile, start: int, length: int, source: str) -> zipfile.ZipFile:
    if start < 0 or length < 0 or start + length > file.size:
        raise SourceError(
            f"{source} ends at byte {start + length} of {file.path.name}, which has {file.size}",
            "the file is truncated; copy the checkpoint again",
        )
    try:
        return zipfile.ZipFile(io.BufferedReader(_Window(file, start, length)))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FormatError(
            f"{source}: not what torch.save writes ({error})", "get the checkpoint again; older forms cannot be read"
        ) from error


def _description(archive: zipfile.ZipFile, source: str, persistent: Any) -> Any:
    try:
        entry = _entry(archive, "data.pkl")
        order = archive.read(_entry(archive, "byteorder")) if _has(archive, "byteorder") else b"little"
        if entry.file_size > _LARGEST_PICKLE or order != b"little":
            raise FormatError(f"{source}: a description of {entry.file_size} bytes, {order!r}", "save it again")
        data = archive.read(entry)
    except (zipfile.BadZipFile, KeyError, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise FormatError(f"{source}: not what torch.save writes ({error})", "get the checkpoint again") from error
    return read_pickle(data, source, persistent)


def _entry(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    # The folder within the zip is the name of the file that was saved.
    for entry in archive.infolist():
        if entry.filename.partition("/")[2] == name:
            return entry
    raise KeyError(f"there is no {name}")


def _has(archive: zipfile.ZipFile, name: str) -> bool:
    return any(entry.filename.partition("/")[2] == name for entry in archive.infolist())


def _header_bytes(file: SourceFile, offset: int) -> int:
    """Length of a local header, whose name and extra field differ from the central directory's."""
    header = bytearray(_LOCAL_HEADER_BYTES)
    file.read_into(memoryview(header), offset)
    return _LOCAL_HEADER_BYTES + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def write_torch_tensor(out: BinaryIO, dtype: str, shape: tuple[int, ...], values: Iterable[memoryview]) -> None:
    """Append what torch.save writes of a tensor, from where the file stands.

    Args:
        out: a file that can seek.
        dtype: F32, F16 or BF16.
        values: its bytes, row after row, in pieces.
    """
    steps = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = Persistent(("storage", named(STORAGES[dtype]), "0", "cpu", math.prod(shape)))
    hooks = make_record("collections OrderedDict")
    value = make_record("torch._utils _rebuild_tensor_v2", storage, 0, shape, steps, False, hooks)
    _write_zip(out, value, values)


def write_torch_object(out: BinaryIO, value: Any) -> None:
    """Append what torch.save writes of builtins and Records, from where the file stands."""
    _write_zip(out, value, None)


def _write_zip(out: BinaryIO, value: Any, values: Iterable[memoryview] | None) -> None:
    with zipfile.ZipFile(_Appended(out), "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), write_pickle(value))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        if values is not None:
            with archive.open(zipfile.ZipInfo("archive/data/0"), "w", force_zip64=True) as entry:
                for piece in values:
                    entry.write(piece)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")


class _Appended(io.RawIOBase):
    """A file whose byte 0 is where another file stands, so that offsets within the zip count from its own start."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._start = out.tell()

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._out.write(data)

    def tell(self) -> int:
        return self._out.tell() - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = self._start if whence == io.SEEK_SET else 0
        return self._out.seek(start + offset, whence) - self._start


def open_file(path: Path) -> SourceFile:
    """A file of the checkpoint, opened.

    Raises:
        SourceError: there is none.
    """
    if not path.is_file():
        raise SourceError(f"{path.name}: no such file in {path.parent}", "copy the whole checkpoint")
    return SourceFile(path)
