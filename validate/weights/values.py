"""Read rows of tensors of any type as float32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.encodings import widen
from mconv.convert.tensors.nodes import Tensor, row_count, row_length
from mconv.quantize import ggml

CHUNK_WEIGHTS = 1 << 18
"""Weights in a row range: intermediate results fit into the cache of a core, and memory is reused. With four times as
many, it took 50 % more CPU time, mostly for new memory pages."""


def row_ranges(tensor: Tensor, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
    """Split rows [start, stop) into chunks. Default: all rows."""
    stop = row_count(tensor.shape) if stop is None else stop
    step = max(1, CHUNK_WEIGHTS // row_length(tensor.shape))
    return ((low, min(low + step, stop)) for low in range(start, stop, step))


def decode(tensor: Tensor, rows: np.ndarray) -> np.ndarray:
    """Convert stored rows of a tensor to float32."""
    kind = BlockType[tensor.dtype]
    if not kind.is_quantized:
        return widen(rows)
    values = np.empty((len(rows), tensor.shape[-1]), np.float32)
    ggml.dequantize_rows(kind, rows, values)
    return values


def read_values(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """Rows [start, stop) as float32."""
    return decode(tensor, tensor.read(start, stop))


def read_scattered(tensor: Tensor, rows: np.ndarray) -> np.ndarray:
    """Some rows as stored, in ascending order."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    return np.concatenate([tensor.read(int(run[0]), int(run[-1]) + 1) for run in runs])


def choose_rows(tensor: Tensor, count: int) -> np.ndarray:
    """A sample of rows, ascending, the same in every run. Random, since repetitions occur at regular distances."""
    total = row_count(tensor.shape)
    return np.sort(np.random.default_rng(0).choice(total, min(count, total), replace=False))
