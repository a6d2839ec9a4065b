"""Encode and decode blocks with ggml, the library inside llama-cpp-python.

Its functions keep no state except tables that it builds under its own lock, and ctypes releases the GIL during a call,
so any number of threads can call it at once. The signatures are those of ggml/include/ggml.h and
ggml/src/ggml-quants.h.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mconv.convert.errors import QuantizationError
from mconv.convert.tensors import encodings
from mconv.convert.tensors.block_types import BlockType

_INSTALL_HINT = "install the llama-cpp-python that constraints.txt names, built with shared libraries (the default)"

_GRID_TYPES = frozenset(
    {
        BlockType.IQ1_S, BlockType.IQ1_M, BlockType.IQ2_XXS, BlockType.IQ2_XS, BlockType.IQ2_S,
        BlockType.IQ3_XXS, BlockType.IQ3_S,
    }
)  # fmt: skip
_GRID_LIMIT = 1e8
"""For larger values the scales of these types overflow; for slightly larger ones ggml ends the whole process."""


def quantize_rows(block_type: BlockType, rows: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    """Encode rows like llama-quantize (ggml/src/ggml.c `ggml_quantize_chunk`).

    Float types round to nearest even. A large value may overflow F16, or the float16 scale of a block; the caller must
    check for that.

    Args:
        block_type: the target type.
        rows: float32 (n, k), finite, C-contiguous; k is a multiple of the block size.
        weights: float32 (k,), the importance of each column, not negative; or None.
        out: uint8 (n, row bytes), C-contiguous; filled by this call.

    Raises:
        QuantizationError: the type requires weights and there are none, a value is outside the range of the type, or
            the library is missing or does not have the type.
    """
    library = _library_with(block_type)
    count, length = rows.shape
    if block_type in _GRID_TYPES and not np.abs(rows).max(initial=0) <= _GRID_LIMIT:
        raise QuantizationError(
            f"{block_type.name} cannot hold values beyond {_GRID_LIMIT:.0e}", "give this tensor a float type"
        )
    if weights is None and library.ggml_quantize_requires_imatrix(block_type.number):
        raise QuantizationError(f"{block_type.name} needs an importance matrix", "give one with --imatrix")
    source = _address(rows, np.float32, (count, length))
    target = _address(out, np.uint8, (count, block_type.row_bytes(length)))
    importance = None if weights is None else _address(weights, np.float32, (length,))
    library.ggml_quantize_chunk(block_type.number, source, target, 0, count, length, importance)


def dequantize_rows(block_type: BlockType, blocks: np.ndarray, out: np.ndarray) -> None:
    """Decode rows like llama-quantize before it quantizes again.

    If llama-cpp-python is not installed, gguf's Python package is used: the same values, ten to thirty times slower.

    Args:
        block_type: the type of the blocks.
        blocks: uint8 (n, row bytes), C-contiguous.
        out: float32 (n, k), C-contiguous; filled by this call.

    Raises:
        QuantizationError: the library does not have the type, or neither package can decode it.
    """
    if not _is_installed():
        out[:] = encodings.decode(block_type, blocks)
        return
    library = _library_with(block_type)
    count, length = out.shape
    source = _address(blocks, np.uint8, (count, block_type.row_bytes(length)))
    target = _address(out, np.float32, (count, length))
    if block_type is BlockType.F32:
        ctypes.memmove(target, source, blocks.nbytes)
        return
    decode = getattr(library, _decoder_name(block_type))
    decode(ctypes.c_void_p(source), ctypes.c_void_p(target), ctypes.c_int64(count * length))


def version() -> str:
    """The version of ggml, and the commit that it was built from."""
    library = _library()
    return f"{library.ggml_version().decode()} ({library.ggml_commit().decode()})"


def _address(array: np.ndarray, dtype: type[np.generic], shape: tuple[int, ...]) -> int:
    # The library gets only a pointer: it would read or write past the end of a wrong array.
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise TypeError(f"expected C-contiguous {np.dtype(dtype)} {shape}, not {array.dtype} {array.shape}")
    return array.ctypes.data


def _ggml_name(block_type: BlockType) -> str:
    return block_type.name.lower().replace("_k", "_K")


def _decoder_name(block_type: BlockType) -> str:
    if not block_type.is_quantized:
        return f"ggml_{'bf16' if block_type is BlockType.BF16 else 'fp16'}_to_fp32_row"
    return f"dequantize_row_{_ggml_name(block_type)}"


@cache
def _is_installed() -> bool:
    return find_spec("llama_cpp") is not None


@cache
def _library_with(block_type: BlockType) -> ctypes.CDLL:
    library = _library()
    number = block_type.number
    found = (library.ggml_type_name(number), library.ggml_blck_size(number), library.ggml_type_size(number))
    if found != (_ggml_name(block_type).encode(), block_type.block_weights, block_type.block_bytes):
        raise QuantizationError(f"the ggml of the installed llama-cpp-python has no {block_type.name}", _INSTALL_HINT)
    return library


@cache
def _library() -> ctypes.CDLL:
    path = _library_path()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise QuantizationError(f"{path.name} cannot be loaded: {error}", _INSTALL_HINT) from None
    pointer, int64, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t, ctypes.c_int
    signatures = {
        "ggml_quantize_chunk": (size, (number, pointer, pointer, int64, int64, int64, pointer)),
        "ggml_quantize_requires_imatrix": (ctypes.c_bool, (number,)),
        "ggml_type_name": (ctypes.c_char_p, (number,)),
        "ggml_blck_size": (int64, (number,)),
        "ggml_type_size": (size, (number,)),
        "ggml_version": (ctypes.c_char_p, ()),
        "ggml_commit": (ctypes.c_char_p, ()),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _library_path() -> Path:
    # Importing the package itself would load all of llama.cpp.
    spec = find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise QuantizationError("llama-cpp-python is not installed", _INSTALL_HINT)
    file_name = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}.get(sys.platform, "libggml-base.so")
    for folder in spec.submodule_search_locations:
        path = Path(folder, "lib", file_name)
        if path.is_file():
            return path
    raise QuantizationError(f"llama-cpp-python is installed without {file_name}", _INSTALL_HINT)
