"""IQ4_XS: super-blocks of 256 weights in 136 bytes; 8 sub-blocks of 32, each with a 6-bit scale.

Format and arithmetic are those of ggml-quants.c (`quantize_row_iq4_nl_impl` as called by `quantize_iq4_xs`).
"""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.affine import importance
from mconv.quantize.kernels.jit import jit
from mconv.quantize.kernels.lanes import WIDTH, Buffer, absolute, f32_buffer, fill, i32_buffer, part, select, to_float
from mconv.quantize.kernels.memory import F32_KIND, KIND_BYTES, Places, load, new_places, set_places, store
from mconv.quantize.kernels.nonlinear import BLOCK, nearest_index, search_nonlinear
from mconv.quantize.kernels.rounding import ONE, ZERO, clamp, dword, half_bits, nearest

_SUPER_BLOCK = 256
_BLOCKS = 8
_BYTES = 136
_DWORDS = 34


@jit
def _fit(x: Buffer, importances: int, places: Places, header: Buffer, levels: Buffer) -> None:
    """256 vectors `x` -> 2 dwords of scales, 64 dwords of levels."""
    weights, scales, block_levels = f32_buffer(32), f32_buffer(8), i32_buffer(4)
    variance = fill(ZERO)
    if importances:
        for i in range(_SUPER_BLOCK):
            variance += x[i] * x[i]
        variance *= np.float32(2 / _SUPER_BLOCK)
    largest, magnitude = fill(ZERO), fill(ZERO)
    for j in range(_BLOCKS):
        block = part(x, BLOCK * j)
        if importances:
            load(importances, F32_KIND, places, BLOCK * j, BLOCK, weights)
            importance(block, weights, BLOCK, variance)
        else:
            for i in range(BLOCK):
                weights[i] = block[i] * block[i]
        scale = search_nonlinear(block, weights)
        scales[j] = scale
        larger = absolute(scale) > magnitude
        magnitude = select(larger, absolute(scale), magnitude)
        largest = select(larger, scale, largest)

    scale = largest / np.float32(-32)
    step = select(scale != ZERO, ONE / scale, ZERO)
    header[0], header[1] = half_bits(scale), fill(0)
    for j in range(_BLOCKS):
        block = part(x, BLOCK * j)
        level = clamp(nearest(step * scales[j]), -32, 31)
        block_scale = scale * to_float(level)
        block_step = select(block_scale != ZERO, ONE / block_scale, ZERO)
        level += 32
        header[0] = header[0] | ((level >> 4) << (16 + 2 * j))
        header[1] = header[1] | ((level & 15) << (4 * j))
        for i in range(0, BLOCK, 4):
            for k in range(4):
                block_levels[k] = nearest_index(block_step * block[i + k])
            levels[8 * j + i // 4] = dword(block_levels, 0)


def kernel(rows: int, kind: int, blocks: int, period: int, importances: int, out: int) -> None:
    """The scale of all as float16, 2 and 4 bytes with the high and low bits of scales, then 16 bytes per sub-block."""
    places, columns = new_places(), new_places()
    x, packed, levels = f32_buffer(256), i32_buffer(34), i32_buffer(64)
    for first in range(0, blocks, WIDTH):
        set_places(places, first, blocks, blocks, _SUPER_BLOCK * KIND_BYTES[kind])
        set_places(columns, first, blocks, period, _SUPER_BLOCK * 4)
        load(rows, kind, places, 0, _SUPER_BLOCK, x)
        _fit(x, importances, columns, packed, levels)
        for j in range(_BLOCKS):
            for i in range(4):
                packed[2 + 4 * j + i] = levels[8 * j + i] | (levels[8 * j + 4 + i] << 4)
        set_places(places, first, blocks, blocks, _BYTES)
        store(packed, _DWORDS, out, places, 0)
