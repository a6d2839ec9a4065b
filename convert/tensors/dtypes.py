"""The float type of every tensor in the layouts without block types: Hugging Face and Megatron-Core."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mconv.convert.engine.jobs import CHUNK_WEIGHTS
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.encodings import ConvertedTensor, encode_floats, widen
from mconv.convert.tensors.nodes import FLOAT_DTYPES, Tensor, row_count, row_length


def typed_tensors(checkpoint: Checkpoint, wanted: BlockType | None) -> dict[str, Tensor]:
    """Every tensor, converted to the type in which it is written, by canonical name.

    Args:
        wanted: one type for all tensors. None keeps the stored type; then quantized tensors get the `main_type`, and so
            does a vector that the layout of the source widened, provided that this rounds none of its values.
    """
    main = main_type(checkpoint.tensors)

    def kind(tensor: Tensor) -> BlockType:
        if wanted is not None:
            return wanted
        if tensor.dtype not in FLOAT_DTYPES:
            return main
        widened = checkpoint.float32_by_layout and tensor.dtype == "F32" != main.name
        return main if widened and _is_exact(tensor, main) else BlockType[tensor.dtype]

    return {name: convert_tensor(tensor, kind(tensor)) for name, tensor in checkpoint.tensors.items()}


def wanted_type(dtype: str) -> BlockType | None:
    """The type given by `--dtype`: F32, F16 or BF16; None for `auto`."""
    return None if dtype == "auto" else BlockType[dtype.upper()]


def main_type(tensors: Mapping[str, Tensor]) -> BlockType:
    """The type of a model: the 16-bit type of its matrices, otherwise a type that can hold their values.

    Quantized matrices become BF16, in which these models are published.
    """
    dtypes = {tensor.dtype for tensor in tensors.values() if len(tensor.shape) > 1}
    for kind in (BlockType.BF16, BlockType.F16):
        if kind.name in dtypes:
            return kind
    return BlockType.F32 if dtypes <= {"F32"} else BlockType.BF16


def convert_tensor(tensor: Tensor, kind: BlockType) -> Tensor:
    """The tensor converted to a float type; itself if it is already stored in that type."""
    return tensor if tensor.dtype == kind.name else ConvertedTensor(tensor, kind)


def _is_exact(tensor: Tensor, kind: BlockType) -> bool:
    """Whether a shorter type can hold all float32 values of the tensor. False for NaN, which the executor reports."""
    rows = row_count(tensor.shape)
    step = max(1, CHUNK_WEIGHTS // row_length(tensor.shape))
    for start in range(0, rows, step):
        values = tensor.read(start, min(start + step, rows))
        if not np.array_equal(widen(encode_floats(kind, values).view(FLOAT_DTYPES[kind.name])), values):
            return False
    return True
