"""What Q4_K and Q5_K share: 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum.

The header of both is four dwords: d and dmin (float16), then 12 bytes of scales and minima. Format and arithmetic are
those of ggml-quants.c (`quantize_row_q4_K_ref`, `quantize_row_q4_K_impl` and their Q5_K twins).
"""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.affine import importance, search_affine
from mconv.quantize.kernels.jit import jit
from mconv.quantize.kernels.lanes import (
    Buffer,
    Floats,
    absolute,
    any_lane,
    f32_buffer,
    fill,
    i32_buffer,
    negative,
    part,
    select,
    sqrt,
    to_float,
)
from mconv.quantize.kernels.memory import F32_KIND, Places, load
from mconv.quantize.kernels.positive import search_positive
from mconv.quantize.kernels.rounding import ZERO, clamp, dword, half_bits, half_value, nearest

SUPER_BLOCK = 256
HEADER = 4  # dwords
_BLOCKS = 8
_BLOCK = 32
_TOP = np.float32(63)


@jit
def _plain_weights(x: Buffer, weights: Buffer) -> None:
    squares = fill(ZERO)
    for i in range(_BLOCK):
        squares += x[i] * x[i]
    mean = sqrt(squares / np.float32(_BLOCK))
    for i in range(_BLOCK):
        weights[i] = mean + absolute(x[i])


@jit
def _plain_scale(values: Buffer, levels: Buffer) -> Floats:
    """Levels of 0 to 63 for values of 0 to their largest; the scale."""
    high = fill(ZERO)
    for i in range(_BLOCKS):
        high = select(values[i] > high, values[i], high)
    step = select(high > ZERO, _TOP / high, ZERO)
    for i in range(_BLOCKS):
        level = nearest(step * values[i]) & 0xFF
        levels[i] = select(level < 63, level, 63)
    return high / _TOP


@jit
def _pack_header(scales: Buffer, lows: Buffer, header: Buffer) -> None:
    """Pack 6-bit scales and minima into bytes; the arguments are set to what a reader of the bytes will see."""
    header[1] = fill(0)
    header[2] = fill(0)
    header[3] = fill(0)
    for i in range(4):
        scale, low = scales[i + 4], lows[i + 4]
        header[1] = header[1] | (((scales[i] | ((scale >> 4) << 6)) & 0xFF) << (8 * i))
        header[2] = header[2] | (((lows[i] | ((low >> 4) << 6)) & 0xFF) << (8 * i))
        header[3] = header[3] | (((scale & 15) | ((low & 15) << 4)) << (8 * i))
    for i in range(4):
        scale, low, both = header[1] >> (8 * i), header[2] >> (8 * i), header[3] >> (8 * i)
        scales[i], scales[i + 4] = scale & 63, (both & 15) | (((scale >> 6) & 3) << 4)
        lows[i], lows[i + 4] = low & 63, ((both >> 4) & 15) | (((low >> 6) & 3) << 4)


@jit
def _round_block(x: Buffer, scale: Floats, low: Floats, found: tuple, top: int, levels: Buffer) -> None:
    """32 vectors `x` -> 8 dwords of levels for the scale and minimum as stored.

    If the stored scale is zero, ggml keeps the levels that the search has found: `found` is their step and low.
    """
    block_levels = i32_buffer(4)
    vanished = scale == ZERO
    some_vanished = any_lane(vanished)
    for i in range(0, _BLOCK, 4):
        for k in range(4):
            level = clamp(nearest((x[i + k] + low) / scale), 0, top)
            if some_vanished:
                level = select(vanished, clamp(nearest(found[0] * (x[i + k] - found[1])), 0, top), level)
            block_levels[k] = level
        levels[i // 4] = dword(block_levels, 0)


@jit
def fit_affine_k(
    x: Buffer, importances: int, places: Places, tops: np.ndarray, cap: int, header: Buffer, levels: Buffer
) -> None:
    """Scales, minima and levels of a super-block: 256 vectors `x` -> 4 dwords of header, 64 dwords of levels.

    `cap` bounds the levels of scales and minima under importance, which ggml keeps in bytes: the rare negative one
    wraps around, to be cut to 63 in Q5_K, and to spill into its neighbour's bits in Q4_K.
    """
    weights, block_weights = f32_buffer(32), f32_buffer(8)
    scales, lows = f32_buffer(8), f32_buffer(8)
    steps, level_lows = f32_buffer(8), f32_buffer(8)
    scale_levels, low_levels = i32_buffer(8), i32_buffer(8)
    top = int(tops[0])
    variance = fill(ZERO)
    if importances:
        for i in range(SUPER_BLOCK):
            variance += x[i] * x[i]
        variance = np.float32(2) * variance / np.float32(SUPER_BLOCK)
    for j in range(_BLOCKS):
        block = part(x, _BLOCK * j)
        if importances:
            load(importances, F32_KIND, places, _BLOCK * j, _BLOCK, weights)
            importance(block, weights, _BLOCK, variance)
            total = fill(ZERO)
            for i in range(_BLOCK):
                total += weights[i]
            block_weights[j] = total
        else:
            _plain_weights(block, weights)
        scale, low, step, level_low = search_affine(block, weights, _BLOCK, tops)
        scales[j], lows[j], steps[j], level_lows[j] = scale, negative(low), step, level_low

    if importances:
        scale = search_positive(scales, block_weights, _BLOCKS, scale_levels)
        low = search_positive(lows, block_weights, _BLOCKS, low_levels)
        for i in range(_BLOCKS):
            scale_levels[i] = clamp(scale_levels[i], 0, cap)
            low_levels[i] = clamp(low_levels[i], 0, cap)
    else:
        scale, low = _plain_scale(scales, scale_levels), _plain_scale(lows, low_levels)
    scale_half, low_half = half_bits(scale), half_bits(low)
    header[0] = scale_half | (low_half << 16)
    _pack_header(scale_levels, low_levels, header)

    scale, low = half_value(scale_half), half_value(low_half)
    for j in range(_BLOCKS):
        block_scale, block_low = scale * to_float(scale_levels[j]), low * to_float(low_levels[j])
        found = steps[j], level_lows[j]
        _round_block(part(x, _BLOCK * j), block_scale, block_low, found, top, part(levels, 8 * j))
