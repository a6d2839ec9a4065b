"""IQ4_NL: blocks of 32 weights in 18 bytes.

Format and arithmetic are those of ggml-quants.c (`quantize_row_iq4_nl_impl` as called by `quantize_iq4_nl`).
"""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.affine import importance
from mconv.quantize.kernels.lanes import WIDTH, f32_buffer, fill, i32_buffer, select
from mconv.quantize.kernels.memory import F32_KIND, KIND_BYTES, load, new_places, set_places, store, store_half
from mconv.quantize.kernels.nonlinear import BLOCK, nearest_index, search_nonlinear
from mconv.quantize.kernels.rounding import ONE, ZERO, dword, half_bits

_BYTES = 18


def kernel(rows: int, kind: int, blocks: int, period: int, importances: int, out: int) -> None:
    """The scale as float16, then 16 bytes: the first 16 weights in the low halves, the others in the high ones."""
    places, columns = new_places(), new_places()
    x, weights, indexes, packed = f32_buffer(32), f32_buffer(32), i32_buffer(4), i32_buffer(8)
    for first in range(0, blocks, WIDTH):
        set_places(places, first, blocks, blocks, BLOCK * KIND_BYTES[kind])
        load(rows, kind, places, 0, BLOCK, x)
        if importances:
            set_places(columns, first, blocks, period, BLOCK * 4)
            load(importances, F32_KIND, columns, 0, BLOCK, weights)
            variance = fill(ZERO)
            for i in range(BLOCK):
                variance += x[i] * x[i]
            importance(x, weights, BLOCK, variance * np.float32(2 / BLOCK))
        else:
            for i in range(BLOCK):
                weights[i] = x[i] * x[i]
        scale = search_nonlinear(x, weights)
        step = select(scale != ZERO, ONE / scale, ZERO)
        for i in range(0, BLOCK, 4):
            for k in range(4):
                indexes[k] = nearest_index(step * x[i + k])
            packed[i // 4] = dword(indexes, 0)
        for i in range(4):
            packed[i] = packed[i] | (packed[4 + i] << 4)
        set_places(places, first, blocks, blocks, _BYTES)
        store_half(half_bits(scale), out, places, 0)
        store(packed, 4, out, places, 2)
