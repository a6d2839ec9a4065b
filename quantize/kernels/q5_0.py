"""Q5_0: blocks of 32 weights in 22 bytes (ggml-quants.c `quantize_row_q5_0_ref` and `quantize_row_q5_0_impl`)."""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.affine import importance
from mconv.quantize.kernels.five_bits import BLOCK, pack_five_bits, row_variance
from mconv.quantize.kernels.jit import jit
from mconv.quantize.kernels.lanes import WIDTH, Buffer, Floats, absolute, f32_buffer, fill, i32_buffer, select
from mconv.quantize.kernels.memory import F32_KIND, KIND_BYTES, load, new_places, set_places, store, store_half
from mconv.quantize.kernels.rounding import ONE, ZERO, clamp, dword, half_bits, nearest, toward_zero
from mconv.quantize.kernels.symmetric import search_symmetric, trial_tops

_BYTES = 22
_TOP = 16
_TOPS = trial_tops(_TOP)


@jit
def _plain(x: Buffer, levels: Buffer) -> Floats:
    """32 vectors `x` -> 8 dwords of levels, and the scale that takes the largest magnitude to level 0."""
    block_levels = i32_buffer(4)
    largest, magnitude = fill(ZERO), fill(ZERO)
    for i in range(BLOCK):
        larger = magnitude < absolute(x[i])
        magnitude = select(larger, absolute(x[i]), magnitude)
        largest = select(larger, x[i], largest)
    scale = largest / np.float32(-_TOP)
    step = select(scale != ZERO, ONE / scale, ZERO)
    for i in range(0, BLOCK, 4):
        for k in range(4):
            level = toward_zero(x[i + k] * step + np.float32(16.5))
            block_levels[k] = select(level < 31, level, 31)
        levels[i // 4] = dword(block_levels, 0)
    return scale


@jit
def _weighted(x: Buffer, weights: Buffer, levels: Buffer) -> Floats:
    block_levels = i32_buffer(4)
    scale, step, something = search_symmetric(x, weights, BLOCK, _TOP, _TOPS)
    for i in range(0, BLOCK, 4):
        for k in range(4):
            level = clamp(nearest(step * x[i + k]), -_TOP, _TOP - 1) + _TOP
            block_levels[k] = select(something, level, 0)
        levels[i // 4] = dword(block_levels, 0)
    return scale


def kernel(rows: int, kind: int, blocks: int, period: int, importances: int, out: int) -> None:
    """The scale as float16, 4 bytes of highest bits, 16 bytes of low four bits: the first 16 weights, the others."""
    source, target, shared = new_places(), new_places(), new_places()
    x, weights, levels, packed = f32_buffer(32), f32_buffer(32), i32_buffer(8), i32_buffer(5)
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
                scale = _weighted(x, weights, levels)
            else:
                scale = _plain(x, levels)
            pack_five_bits(levels, packed)
            store_half(half_bits(scale), out, target, _BYTES * column)
            store(packed, 5, out, target, _BYTES * column + 2)
