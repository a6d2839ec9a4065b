"""Q5_K: super-blocks of 256 weights in 176 bytes."""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.affine import trial_tops
from mconv.quantize.kernels.affine_k import HEADER, SUPER_BLOCK, fit_affine_k
from mconv.quantize.kernels.lanes import WIDTH, f32_buffer, fill, i32_buffer, part
from mconv.quantize.kernels.memory import KIND_BYTES, load, new_places, set_places, store

_TOP = 31
_CAP = np.int64(63)  # not a literal, for which Numba would compile `fit_affine_k` once more
_BYTES = 176
_PLAIN_TOPS = trial_tops(_TOP, -0.5, 0.1, 15)
_IMPORTANCE_TOPS = trial_tops(_TOP, -0.9, 0.05, 36)


def kernel(rows: int, kind: int, blocks: int, period: int, importances: int, out: int) -> None:
    """Header, then 32 bytes with the highest bit of 8 sub-blocks, then the low four bits as in Q4_K."""
    places, columns = new_places(), new_places()
    x, packed, levels = f32_buffer(256), i32_buffer(44), i32_buffer(64)
    high, low = part(packed, HEADER), part(packed, HEADER + 8)
    tops = _IMPORTANCE_TOPS if importances else _PLAIN_TOPS
    for first in range(0, blocks, WIDTH):
        set_places(places, first, blocks, blocks, SUPER_BLOCK * KIND_BYTES[kind])
        set_places(columns, first, blocks, period, SUPER_BLOCK * 4)
        load(rows, kind, places, 0, SUPER_BLOCK, x)
        fit_affine_k(x, importances, columns, tops, _CAP, packed, levels)
        for i in range(8):
            high[i] = fill(0)
            for j in range(8):
                high[i] = high[i] | (((levels[8 * j + i] >> 4) & 0x01010101) << j)
            for j in range(4):
                even, odd = levels[16 * j + i], levels[16 * j + 8 + i]
                low[8 * j + i] = (even & 0x0F0F0F0F) | ((odd & 0x0F0F0F0F) << 4)
        set_places(places, first, blocks, blocks, _BYTES)
        store(packed, 44, out, places, 0)
