"""Compiled loops over values: error sums, and detection of blocks that no encoder would have written."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Lock

import numpy as np

from mconv.convert.tensors.block_types import BlockType
from mconv.validate.weights.errors import LIMITS, Sums

# A block of weights smaller than this may be all zeros: the scale is stored as float16.
_FAINT = 1e-5
# Half a step of bfloat16: reference and encoded values may differ by this due to an intermediate file.
_ROUNDING = 2.0**-8
_compiling = Lock()


def measure(found: np.ndarray, reference: np.ndarray) -> Sums:
    """Sums over two float32 arrays of the same shape. They are not finite if a value is not."""
    out = np.zeros(7)
    _compiled(_sum)(found.reshape(-1), reference.reshape(-1), out)
    return Sums(found.size, *out.tolist())


def damaged_blocks(kind: BlockType, found: np.ndarray, reference: np.ndarray, *, codes: bool = True) -> np.ndarray:
    """Which blocks are further from the reference than their scales explain; see `Limits`.

    Args:
        found: float32 (blocks, weights of a block), decoded.
        reference: the same for the reference.
        codes: also check single values, not only whole blocks.

    Returns:
        bool (blocks,).
    """
    limits = LIMITS[kind]
    flags = np.zeros(len(found), np.bool_)
    settings = (limits.block, limits.cosine, limits.run if codes else 0, float(limits.steps), limits.nearest)
    _compiled(_flag)(found, reference, *settings, flags)
    return flags


def prepare() -> None:
    """Compile the kernels or load them from the cache, so that no later call waits for the compiler."""
    _compiled(_sum)
    _compiled(_flag)


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    with _compiling:
        return _compile(function)


@cache
def _compile(function: Callable[..., None]) -> Callable[..., None]:
    from numba import boolean, float32, float64, intp, void

    from mconv.quantize.kernels.jit import compile_kernel

    values, blocks, sums, flags = float32[::1], float32[:, ::1], float64[::1], boolean[::1]
    if function is _sum:
        # Order does not matter, since people read the sums; eight at a time keep up with the memory bandwidth.
        return compile_kernel(function, void(values, values, sums), frozenset({"reassoc", "contract"}))
    # A block with NaN is found by its sums.
    signature = void(blocks, blocks, float64, float64, intp, float64, float64, flags)
    return compile_kernel(function, signature, frozenset({"reassoc", "contract", "nnan", "nsz"}))


def _sum(found: np.ndarray, reference: np.ndarray, out: np.ndarray) -> None:
    total = of_reference = squares = reference_squares = products = errors = 0.0
    largest = np.int32(0)
    for i in range(found.size):
        a, r = np.float64(found[i]), np.float64(reference[i])
        total += a
        of_reference += r
        squares += a * a
        reference_squares += r * r
        products += a * r
        errors += (a - r) * (a - r)
        # The bits of positive floats have the same order as the values, and integers have a vector maximum.
        largest = max(largest, np.float32(found[i] - reference[i]).view(np.int32) & np.int32(0x7FFFFFFF))
    out[0], out[1], out[2], out[3], out[4], out[5] = total, of_reference, squares, reference_squares, products, errors
    out[6] = np.int32(largest).view(np.float32)


def _flag(
    found: np.ndarray,
    reference: np.ndarray,
    block: float,
    cosine: float,
    run: int,
    steps: float,
    nearest: float,
    flags: np.ndarray,
) -> None:
    blocks, weights = found.shape
    for b in range(blocks):
        error = power = stored = products = 0.0
        for i in range(weights):
            a, r = np.float64(found[b, i]), np.float64(reference[b, i])
            error += (a - r) * (a - r)
            power += r * r
            stored += a * a
            products += a * r
        if power > weights * _FAINT * _FAINT:
            flags[b] = error >= block * block * power or products <= cosine * np.sqrt(stored * power)
        start = 0
        while run > 0 and start < weights and not flags[b]:
            low = high = found[b, start]
            for i in range(start, start + run):
                low, high = min(low, found[b, i]), max(high, found[b, i])
            widest = np.float32(0.0)
            for i in range(start, start + run):
                a, r = found[b, i], reference[b, i]
                clamped = (a == high and r > a) or (a == low and r < a)
                error_here = abs(a - r) - np.float32(_ROUNDING) * abs(r)
                widest = max(widest, np.float32(0.0) if clamped else error_here)
            # A lower bound of the smallest step, which is enough for most runs.
            if widest * steps > nearest * (high - low):
                # The bits of the smallest difference minus one, so that zero becomes the largest number.
                least = np.uint32(0xFFFFFFFF)
                for i in range(start + 1, start + run):
                    for j in range(start, i):
                        apart = np.float32(found[b, j] - found[b, i]).view(np.uint32) & np.uint32(0x7FFFFFFF)
                        least = min(least, np.uint32(apart - np.uint32(1)))
                step = np.uint32(least + np.uint32(1)).view(np.float32)
                flags[b] = least != np.uint32(0xFFFFFFFF) and widest > nearest * step
            start += run
