"""Mistakes of converters and of disks, made in GGUF files: each function edits one in place, whatever its types."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mconv.convert.containers.gguf import TensorInfo, encode_header, padded, read_gguf
from mconv.convert.model.metadata import Value
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.encodings import widen
from mconv.convert.tensors.nodes import FileTensor, row_count
from mconv.convert.tensors.orders import RotaryInterleaved, index_of, invert
from mconv.quantize import ggml


def find(path: Path, name: str) -> FileTensor:
    """A tensor by its GGUF name."""
    return next(tensor for tensor in read_gguf(path).tensors if tensor.name == name)


def stored_rows(path: Path, name: str) -> np.ndarray:
    """The rows of a tensor as bytes, uint8 (rows, row bytes); what is assigned to them is written to the file."""
    tensor = find(path, name)
    shape = (row_count(tensor.shape), tensor.row_bytes)
    return np.memmap(path, np.uint8, "r+", tensor.offset, shape)


def read_values(path: Path, name: str) -> np.ndarray:
    """The values of a tensor, float32 of its shape."""
    tensor = find(path, name)
    kind, rows = BlockType[tensor.dtype], tensor.read(0, row_count(tensor.shape))
    if not kind.is_quantized:
        return widen(rows).reshape(tensor.shape)
    values = np.empty((len(rows), tensor.shape[-1]), np.float32)
    ggml.dequantize_rows(kind, rows, values)
    return values.reshape(tensor.shape)


def write_values(path: Path, name: str, values: np.ndarray) -> None:
    """Encode values to the tensor's type, in its place."""
    tensor = find(path, name)
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, tensor.shape[-1])
    blocks = np.empty((len(rows), BlockType[tensor.dtype].row_bytes(tensor.shape[-1])), np.uint8)
    ggml.quantize_rows(BlockType[tensor.dtype], rows, None, blocks)
    stored = stored_rows(path, name)
    stored[:] = blocks.reshape(stored.shape)


def move_rows(path: Path, name: str, order: np.ndarray) -> None:
    """Row r becomes row `order[r]`."""
    rows = stored_rows(path, name)
    rows[:] = np.array(rows)[order]


def undo_interleave(path: Path, *names: str) -> None:
    """Query or key rows as Hugging Face has them: what a converter writes that forgets to permute."""
    for name in names:
        move_rows(path, name, invert(_interleave(path, name)))


def interleave_again(path: Path, *names: str) -> None:
    """Query or key rows that were permuted twice."""
    for name in names:
        move_rows(path, name, _interleave(path, name))


def _interleave(path: Path, name: str) -> np.ndarray:
    head_dim = read_gguf(path).metadata["llama.rope.dimension_count"].content
    return index_of(RotaryInterleaved(find(path, name).shape[0] // head_dim, head_dim))


def swap(path: Path, one: str, other: str) -> None:
    """Two tensors of one shape hold each other's values."""
    rows, others = stored_rows(path, one), stored_rows(path, other)
    if rows.shape == others.shape:
        rows[:], others[:] = np.array(others), np.array(rows)
    else:  # they differ in type
        first, second = read_values(path, one), read_values(path, other)
        write_values(path, one, second)
        write_values(path, other, first)


def copy_layer(path: Path, source: int, target: int) -> None:
    """A layer holds another one's tensors; both must have the same types."""
    for tensor in read_gguf(path).tensors:
        if tensor.name.startswith(f"blk.{source}."):
            name = tensor.name.replace(f"blk.{source}.", f"blk.{target}.")
            stored_rows(path, name)[:] = stored_rows(path, tensor.name)


def transpose(path: Path, name: str) -> None:
    """Rows of a square matrix become its columns."""
    write_values(path, name, read_values(path, name).T)


def swap_experts(path: Path, names: Collection[str], one: int, other: int) -> None:
    """Two experts change places in stacks."""
    for name in names:
        experts, height, _ = find(path, name).shape
        order = np.arange(experts * height).reshape(experts, height)
        order[[one, other]] = order[[other, one]]
        move_rows(path, name, order.reshape(-1))


def change_values(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Values become a function of themselves."""
    write_values(path, name, change(read_values(path, name)))


def shift_rows(path: Path, name: str) -> None:
    """Row r holds row r + 1, the last one twice: a vocabulary off by one."""
    count = row_count(find(path, name).shape)
    move_rows(path, name, np.minimum(np.arange(count) + 1, count - 1))


def flip_bit(path: Path, name: str, row: int, byte: int, bit: int) -> None:
    """One bit of a row."""
    stored_rows(path, name)[row, byte] ^= np.uint8(1 << bit)


def write_bytes(path: Path, name: str, row: int, data: bytes) -> None:
    """The first bytes of a row."""
    stored_rows(path, name)[row, : len(data)] = np.frombuffer(data, np.uint8)


def rewrite(
    path: Path,
    *,
    keys: Mapping[str, Value] | None = None,
    drop: Collection[str] = (),
    add: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the file anew: with other keys, without some tensors, or with more of float32."""
    file = read_gguf(path)
    contents = {
        tensor.name: (tensor.shape, tensor.dtype, tensor.read(0, row_count(tensor.shape)).tobytes())
        for tensor in file.tensors
        if tensor.name not in drop
    }
    contents |= {name: (values.shape, "F32", values.astype("<f4").tobytes()) for name, values in (add or {}).items()}
    infos, offset = [], 0
    for name, (shape, dtype, data) in contents.items():
        infos.append(TensorInfo(name, shape, BlockType[dtype], offset))
        offset += padded(len(data), file.alignment)
    with path.open("wb") as out:
        out.write(encode_header({**file.metadata, **(keys or {})}, infos, file.alignment))
        for _, _, data in contents.values():
            out.write(data.ljust(padded(len(data), file.alignment), b"\0"))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a Hugging Face folder, which then lie in a single file."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in folder.glob("model*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
