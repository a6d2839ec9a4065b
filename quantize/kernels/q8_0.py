"""Q8_0: blocks of 32 weights in 34 bytes (ggml-quants.c `quantize_row_q8_0_ref`)."""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.lanes import WIDTH, absolute, f32_buffer, fill, i32_buffer, select
from mconv.quantize.kernels.memory import KIND_BYTES, load, new_places, set_places, store, store_half
from mconv.quantize.kernels.rounding import ONE, ZERO, dword, half_bits, nearest_away

_BLOCK = 32
_BYTES = 34


def kernel(rows: int, kind: int, blocks: int, period: int, importances: int, out: int) -> None:
    """The scale as float16, then one signed byte per weight. Importance is not used."""
    places = new_places()
    x, levels, packed = f32_buffer(32), i32_buffer(4), i32_buffer(8)
    for first in range(0, blocks, WIDTH):
        set_places(places, first, blocks, blocks, _BLOCK * KIND_BYTES[kind])
        load(rows, kind, places, 0, _BLOCK, x)
        magnitude = fill(ZERO)
        for i in range(_BLOCK):
            magnitude = select(magnitude > absolute(x[i]), magnitude, absolute(x[i]))
        scale = magnitude / np.float32(127)
        step = select(scale != ZERO, ONE / scale, ZERO)
        for i in range(0, _BLOCK, 4):
            for k in range(4):
                levels[k] = nearest_away(step * x[i + k]) & 0xFF
            packed[i // 4] = dword(levels, 0)
        set_places(places, first, blocks, blocks, _BYTES)
        store_half(half_bits(scale), out, places, 0)
        store(packed, 8, out, places, 2)
