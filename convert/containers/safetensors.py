"""The header of a safetensors file: read without trusting it, and written.

Format: 8 bytes of little-endian header length, that many bytes of JSON, then the data
(https://github.com/huggingface/safetensors#format). The safetensors package returns tensors; streaming needs
ranges of bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mconv.convert.engine.plan import Plan, TypedTarget, place_tensors
from mconv.convert.errors import FormatError, SourceError
from mconv.convert.tensors.files import SourceFile
from mconv.convert.tensors.nodes import FLOAT_DTYPES, FileTensor, row_length

# The limit of the safetensors package itself.
_LARGEST_HEADER = 100_000_000


def read_tensors(path: Path, file_number: int) -> list[FileTensor]:
    """Every tensor of a file, sorted by name.

    Args:
        path: the file.
        file_number: its number among the checkpoint's files, recorded in the position of each tensor.

    Raises:
        SourceError: the file is missing or shorter than its header claims, or holds an unsupported type.
        FormatError: it breaks the rules of the format.
    """
    if not path.is_file():
        raise SourceError(f"{path.name}: no such file in {path.parent}", "download the missing shard")
    file = SourceFile.at(path)
    header, data_start = _read_header(file)
    header.pop("__metadata__", None)
    return [
        _read_entry(file, name, entry, data_start, (file_number, place))
        for place, (name, entry) in enumerate(sorted(header.items()))
    ]


def lay_out_shard(typed: Sequence[TypedTarget]) -> Plan:
    """The plan of a safetensors file: tensors one after the other, in the given order.

    Args:
        typed: each tensor with its type: F32, F16 or BF16.
    """
    tensors = place_tensors(typed)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for tensor in tensors:
        start = tensor.planes[0].offset
        header[tensor.target.name] = {
            "dtype": tensor.encoding,
            "shape": list(tensor.target.shape),
            "data_offsets": [start, start + tensor.size],
        }
    prefix = encode_header(header)
    return Plan(prefix, tensors, len(prefix) + sum(tensor.size for tensor in tensors))


def encode_header(header: Mapping[str, Any]) -> bytes:
    """Everything before the data, from an entry for each tensor."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    # The data starts at a multiple of eight bytes; like the safetensors package, we pad with spaces.
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text


def _read_header(file: SourceFile) -> tuple[dict[str, Any], int]:
    if file.size < 8:
        raise FormatError(
            f"{file.path.name} has {file.size} bytes: too short for a safetensors file", "download the file again"
        )
    prefix = bytearray(8)
    file.read_into(memoryview(prefix), 0)
    length = int.from_bytes(prefix, "little")
    if length > min(_LARGEST_HEADER, file.size - 8):
        raise FormatError(
            f"{file.path.name}: the header claims {length} bytes, but the file has {file.size}",
            "the file is truncated or not a safetensors file; download it again",
        )
    text = bytearray(length)
    file.read_into(memoryview(text), 8)
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file.path.name}: the header is not JSON ({error})", "download the file again") from error
    if not isinstance(header, dict):
        raise FormatError(f"{file.path.name}: the header is not a JSON object", "download the file again")
    return header, 8 + length


def _read_entry(file: SourceFile, name: str, entry: Any, data_start: int, position: tuple[int, int]) -> FileTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(count) is int and count >= 0 for count in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise FormatError(
            f"{file.path.name}: the header entry of {name} is damaged", "download the file again"
        ) from error
    if not whole or begin > end:
        raise FormatError(f"{file.path.name}: {name} has a negative size or offset", "download the file again")
    if data_start + end > file.size:
        raise SourceError(
            f"{file.path.name} is truncated: {name} ends at byte {data_start + end}, but the file has {file.size}",
            "download the file again",
        )
    storage = FLOAT_DTYPES.get(dtype) if isinstance(dtype, str) else None
    if storage is None:
        # Keep it as opaque bytes: only tensors that are used must have a supported type.
        return FileTensor(name, str(dtype), shape, file, data_start + begin, 0, position)
    if math.prod(shape) * storage.itemsize != end - begin:
        raise FormatError(
            f"{file.path.name}: {name} has shape {list(shape)} of {dtype} but {end - begin} bytes",
            "download the file again",
        )
    return FileTensor(name, dtype, shape, file, data_start + begin, row_length(shape) * storage.itemsize, position)
