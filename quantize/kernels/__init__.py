"""Quantization kernels that write the bytes of ggml many times faster (see docs/explanation/kernels.md).

There is one file per block type, compiled with Numba on first use and cached. Importing this package compiles
nothing and does not import Numba.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from importlib import import_module

import numpy as np

from mconv.convert.tensors.block_types import BlockType

SUPPORTED = frozenset({"Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "Q8_0", "Q5_0", "Q5_1", "IQ4_NL"})
"""The names of the block types that have a kernel."""

_KINDS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint16): 2}  # as in `memory`
_kernels: dict[str, Callable[..., None]] = {}
_compiling = threading.Lock()


def prepare(type_names: Iterable[str], progress: Callable[[str], object] | None = None) -> None:
    """Compile the kernels of these types, or load them from the cache, so that later calls need no compiler.

    Args:
        type_names: members of `SUPPORTED`.
        progress: called with the name of each type before its kernel is compiled or loaded.
    """
    for name in type_names:
        if progress is not None:
            progress(name)
        _kernel(name)


def quantize_rows(type_name: str, rows: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    """Encode rows to the bytes that ggml writes on x86-64 (ggml/src/ggml.c `ggml_quantize_chunk`).

    Safe to call from any number of threads; it releases Python's global lock and uses constant memory.

    Args:
        type_name: a member of `SUPPORTED`.
        rows: (n, k) float32, float16, or bfloat16 bits in uint16; finite, C-contiguous; k is whole blocks.
        weights: float32 (k,), the importance of each column, or None.
        out: uint8 (n, row bytes), C-contiguous; filled.

    Raises:
        KeyError: the type has no kernel.
        TypeError: an array has another type, shape or layout.
    """
    kernel = _kernel(type_name)
    block = BlockType[type_name]
    count, length = rows.shape
    kind = _KINDS.get(rows.dtype)
    if kind is None:
        raise TypeError(f"expected rows of float32, float16 or uint16, not {rows.dtype}")
    period = length // block.block_weights
    source = _address(rows, rows.dtype, (count, period * block.block_weights))
    importances = 0 if weights is None else _address(weights, np.dtype(np.float32), (length,))
    target = _address(out, np.dtype(np.uint8), (count, period * block.block_bytes))
    kernel(source, kind, count * period, period, importances, target)


def _address(array: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> int:
    # A kernel gets only an address: it would read or write past the end of a wrong array.
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise TypeError(f"expected C-contiguous {dtype} {shape}, not {array.dtype} {array.shape}")
    return array.ctypes.data


def _kernel(type_name: str) -> Callable[..., None]:
    if type_name in _kernels:
        return _kernels[type_name]
    if type_name not in SUPPORTED:
        raise KeyError(type_name)
    with _compiling:
        if type_name not in _kernels:
            compile_kernel = import_module("mconv.quantize.kernels.jit").compile_kernel
            _kernels[type_name] = compile_kernel(import_module(f"mconv.quantize.kernels.{type_name.lower()}").kernel)
        return _kernels[type_name]
