"""Q5_1: blocks of 32 weights in 24 bytes (ggml-quants.c `quantize_row_q5_1_ref` and `quantize_row_q5_1_impl`)."""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.affine import importance, search_affine, trial_tops
from mconv.quantize.kernels.five_bits import BLOCK, pack_five_bits, row_variance
from mconv.quantize.kernels.jit import jit
from mconv.quantize.kernels.lanes import WIDTH, Buffer, f32_buffer, fill, i32_buffer, part, select
from mconv.quantize.kernels.memory import F32_KIND, KIND_BYTES, load, new_places, set_places, store
from mconv.quantize.kernels.rounding import ONE, ZERO, clamp, dword, half_bits, nearest, toward_zero

_BYTES = 24
_TOP = 31
_TOPS = trial_tops(_TOP, -0.9, 0.05, 36)
_HUGE = np.float32(np.finfo(np.float32).max)


@jit
def _plain(x: Buffer, levels: Buffer) -> tuple:
    """32 vectors `x` -> 8 dwords of levels; the scale and the minimum."""
    block_levels = i32_buffer(4)
    low, high = fill(_HUGE), fill(-_HUGE)
    for i in range(BLOCK):
        low = select(x[i] < low, x[i], low)
        high = select(x[i] > high, x[i], high)
    scale = (high - low) / np.float32(_TOP)
    step = select(scale != ZERO, ONE / scale, ZERO)
    for i in range(0, BLOCK, 4):
        for k in range(4):
            block_levels[k] = toward_zero((x[i + k] - low) * step + np.float32(0.5)) & 0xFF
        levels[i // 4] = dword(block_levels, 0)
    return scale, low


@jit
def _weighted(x: Buffer, weights: Buffer, levels: Buffer) -> tuple:
    block_levels = i32_buffer(4)
    scale, low, step, level_low = search_affine(x, weights, BLOCK, _TOPS)
    for i in range(0, BLOCK, 4):
        for k in range(4):
            block_levels[k] = clamp(nearest(step * (x[i + k] - level_low)), 0, _TOP)
        levels[i // 4] = dword(block_levels, 0)
    return scale, low


def kernel(rows: int, kind: int, blocks: int, period: int, importances: int, out: int) -> None:
    """Scale and minimum as float16, 4 bytes of highest bits, 16 bytes of low four bits as in Q5_0."""
    source, target, shared = new_places(), new_places(), new_places()
    x, weights, levels, packed = f32_buffer(32), f32_buffer(32), i32_buffer(8), i32_buffer(6)
    set_places(shared, 0, 1, 1, 0)
    # A lane processes a row if weights need the variance of rows, else a block, so that even one row fills the lanes.
    length = period if importances else 1
    count = blocks // length
    variance = fill(ZERO)
    for first in range(0, count, WIDTH):
        set_places(source, first, count, count, length * BLOCK * KIND_BYTES[kind])
        set_places(target, first, count, count, length * _BYTES)
        if importances:
            variance = row_variance(rows, kind, source, length)
        for column in range(length):
            load(rows, kind, source, BLOCK * column, BLOCK, x)
            if importances:
                load(importances, F32_KIND, shared, BLOCK * column, BLOCK, weights)
                importance(x, weights, BLOCK, variance)
                scale, low = _weighted(x, weights, levels)
            else:
                scale, low = _plain(x, levels)
            packed[0] = half_bits(scale) | (half_bits(low) << 16)
            pack_five_bits(levels, part(packed, 1))
            store(packed, 6, out, target, _BYTES * column)
