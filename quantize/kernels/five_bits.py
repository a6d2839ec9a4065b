"""What Q5_0 and Q5_1 share: 32 levels of 5 bits, and weights that depend on the variance of their whole row."""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.jit import jit
from mconv.quantize.kernels.lanes import Buffer, Floats, f32_buffer, fill
from mconv.quantize.kernels.memory import Places, load
from mconv.quantize.kernels.rounding import ZERO

BLOCK = 32


@jit
def row_variance(rows: int, kind: int, places: Places, period: int) -> Floats:
    """The mean square of the row of `period` blocks at each lane's place, summed in order."""
    x = f32_buffer(32)
    squares = fill(ZERO)
    for column in range(period):
        load(rows, kind, places, BLOCK * column, BLOCK, x)
        for i in range(BLOCK):
            squares += x[i] * x[i]
    return squares / np.float32(BLOCK * period)


@jit
def pack_five_bits(levels: Buffer, packed: Buffer) -> None:
    """8 dwords of levels -> a dword of highest bits and 4 dwords of low four bits."""
    packed[0] = fill(0)
    for i in range(8):
        high = (levels[i] >> 4) & 0x01010101
        packed[0] = packed[0] | (((high | (high >> 7) | (high >> 14) | (high >> 21)) & 15) << (4 * i))
    for i in range(4):
        packed[1 + i] = (levels[i] & 0x0F0F0F0F) | ((levels[4 + i] & 0x0F0F0F0F) << 4)
