"""Q4_K: super-blocks of 256 weights in 144 bytes."""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.affine import trial_tops
from mconv.quantize.kernels.affine_k import HEADER, SUPER_BLOCK, fit_affine_k
from mconv.quantize.kernels.lanes import WIDTH, f32_buffer, i32_buffer, part
from mconv.quantize.kernels.memory import KIND_BYTES, load, new_places, set_places, store

_TOP = 15
_CAP = np.int64(255)  # not a literal, for which Numba would compile `fit_affine_k` once more
_BYTES = 144
_PLAIN_TOPS = trial_tops(_TOP, -1.0, 0.1, 20)
_IMPORTANCE_TOPS = trial_tops(_TOP, -0.9, 0.05, 36)


def kernel(rows: int, kind: int, blocks: int, period: int, importances: int, out: int) -> None:
    """Header, then pairs of sub-blocks in the low and high halves of 32 bytes."""
    places, columns = new_places(), new_places()
    x, packed, levels = f32_buffer(256), i32_buffer(36), i32_buffer(64)
    tops = _IMPORTANCE_TOPS if importances else _PLAIN_TOPS
    for first in range(0, blocks, WIDTH):
        set_places(places, first, blocks, blocks, SUPER_BLOCK * KIND_BYTES[kind])
        set_places(columns, first, blocks, period, SUPER_BLOCK * 4)
        load(rows, kind, places, 0, SUPER_BLOCK, x)
        fit_affine_k(x, importances, columns, tops, _CAP, packed, levels)
        quants = part(packed, HEADER)
        for j in range(4):
            for i in range(8):
                quants[8 * j + i] = levels[16 * j + i] | (levels[16 * j + 8 + i] << 4)
        set_places(places, first, blocks, blocks, _BYTES)
        store(packed, 36, out, places, 0)
