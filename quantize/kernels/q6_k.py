"""Q6_K: super-blocks of 256 weights in 210 bytes; 16 sub-blocks of 16, each with an 8-bit scale.

Format and arithmetic are those of ggml-quants.c (`quantize_row_q6_K_ref` and `quantize_row_q6_K_impl`).
"""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.jit import jit
from mconv.quantize.kernels.lanes import (
    WIDTH,
    Buffer,
    Ints,
    absolute,
    any_lane,
    f32_buffer,
    fill,
    i32_buffer,
    part,
    select,
    to_float,
)
from mconv.quantize.kernels.memory import F32_KIND, KIND_BYTES, Places, load, new_places, set_places, store, store_half
from mconv.quantize.kernels.rounding import NOTHING, ONE, ZERO, clamp, dword, half_bits, half_value, nearest
from mconv.quantize.kernels.symmetric import search_symmetric, trial_tops

_SUPER_BLOCK = 256
_BLOCKS = 16
_BLOCK = 16
_TOP = 32
_BYTES = 210
_DWORDS = 52
_TOPS = trial_tops(_TOP)


@jit
def _fit(x: Buffer, importances: int, places: Places, scale_levels: Buffer, levels: Buffer) -> Ints:
    """256 vectors `x` -> the levels of 16 scales, 64 dwords of levels of weights, and the bits of the scale of all."""
    weights, scales, steps = f32_buffer(16), f32_buffer(16), f32_buffer(16)
    offsets, block_levels = i32_buffer(16), i32_buffer(4)
    largest, magnitude = fill(ZERO), fill(ZERO)
    for j in range(_BLOCKS):
        block = part(x, _BLOCK * j)
        if importances:
            load(importances, F32_KIND, places, _BLOCK * j, _BLOCK, weights)
        else:
            for i in range(_BLOCK):
                weights[i] = block[i] * block[i]
        scale, step, something = search_symmetric(block, weights, _BLOCK, _TOP, _TOPS)
        scales[j], steps[j], offsets[j] = scale, step, select(something, fill(_TOP), 0)
        larger = absolute(scale) > magnitude
        magnitude = select(larger, absolute(scale), magnitude)
        largest = select(larger, scale, largest)

    nothing = magnitude < NOTHING
    step = np.float32(-128) / largest
    half = half_bits(ONE / step)
    scale = half_value(half)
    for j in range(_BLOCKS):
        block = part(x, _BLOCK * j)
        level = nearest(step * scales[j])
        level = select(level < 127, level, 127) & 0xFF
        scale_levels[j] = select(nothing, 0, level)
        block_scale = scale * to_float(((level + 128) & 0xFF) - 128)
        vanished = block_scale == ZERO
        some_vanished = any_lane(vanished)
        for i in range(0, _BLOCK, 4):
            for k in range(4):
                level = clamp(nearest(block[i + k] / block_scale), -_TOP, _TOP - 1) + _TOP
                if some_vanished:  # ggml then keeps the levels that the search has found
                    found = clamp(nearest(steps[j] * block[i + k]), -_TOP, _TOP - 1) + offsets[j]
                    level = select(vanished, found, level)
                block_levels[k] = select(nothing, 0, level)
            levels[4 * j + i // 4] = dword(block_levels, 0)
    return select(nothing, 0, half)


def kernel(rows: int, kind: int, blocks: int, period: int, importances: int, out: int) -> None:
    """128 bytes of low four bits, 64 of high two bits, 16 of scales, and the scale of all as float16."""
    places, columns = new_places(), new_places()
    x, packed, levels, scale_levels = f32_buffer(256), i32_buffer(52), i32_buffer(64), i32_buffer(16)
    for first in range(0, blocks, WIDTH):
        set_places(places, first, blocks, blocks, _SUPER_BLOCK * KIND_BYTES[kind])
        set_places(columns, first, blocks, period, _SUPER_BLOCK * 4)
        load(rows, kind, places, 0, _SUPER_BLOCK, x)
        half = _fit(x, importances, columns, scale_levels, levels)
        for j in range(2):
            for i in range(16):
                near, far = levels[32 * j + i], levels[32 * j + 16 + i]
                packed[16 * j + i] = (near & 0x0F0F0F0F) | ((far & 0x0F0F0F0F) << 4)
            for i in range(8):
                packed[32 + 8 * j + i] = fill(0)
                for k in range(4):
                    high = (levels[32 * j + 8 * k + i] >> 4) & 0x03030303
                    packed[32 + 8 * j + i] = packed[32 + 8 * j + i] | (high << (2 * k))
        for i in range(4):
            packed[48 + i] = dword(scale_levels, 4 * i)
        set_places(places, first, blocks, blocks, _BYTES)
        store(packed, _DWORDS, out, places, 0)
        store_half(half, out, places, 4 * _DWORDS)
