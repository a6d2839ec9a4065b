"""The search for the scale of a block whose levels are the 16 uneven values of IQ4.

This is ggml-quants.c's `quantize_row_iq4_nl_impl` with 7 trials to each side.
"""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.jit import jit
from mconv.quantize.kernels.lanes import Buffer, Floats, Ints, absolute, f32_buffer, fill, select
from mconv.quantize.kernels.rounding import NOTHING, ONE, ZERO

BLOCK = 32
VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
# Where ggml's `best_index_int8` goes from one value to the next: the midpoints, which are exact in float32.
THRESHOLDS = (VALUES[:-1] + VALUES[1:]) / np.float32(2)
_TRIALS = np.arange(-7, 8, dtype=np.float32) + VALUES[0]


@jit
def nearest_index(x: Floats) -> Ints:
    """The index of the nearest value. NaN gives the highest, as in ggml, where no comparison stops it."""
    index = fill(0)
    for i in range(15):
        index += select(x < THRESHOLDS[i], fill(0), 1)
    return index


@jit
def _nearest_value(x: Floats) -> Floats:
    value = fill(VALUES[0])
    for i in range(15):
        value = select(x < THRESHOLDS[i], value, VALUES[i + 1])
    return value


@jit
def search_nonlinear(x: Buffer, weights: Buffer) -> Floats:
    """The best scale of each lane's block of 32; 0 where the block is zero.

    The trials differ so little (134/120 from first to last) and the thresholds are so far apart (a factor of 1.2 or
    more) that an element meets at most two values, and one threshold between them, in all trials. So both terms of each
    sum are computed once per element, and a trial only selects one.
    """
    middles = f32_buffer(32)
    low_qx, high_qx = f32_buffer(32), f32_buffer(32)
    low_q2, high_q2 = f32_buffer(32), f32_buffer(32)
    largest, magnitude = fill(ZERO), fill(ZERO)
    for i in range(BLOCK):
        larger = absolute(x[i]) > magnitude
        magnitude = select(larger, absolute(x[i]), magnitude)
        largest = select(larger, x[i], largest)
    something = magnitude >= NOTHING

    step = ONE / (largest / -VALUES[0])
    first_step, last_step = _TRIALS[0] / largest, _TRIALS[-1] / largest
    sum_qx, sum_q2 = fill(ZERO), fill(ZERO)
    for i in range(BLOCK):
        value = _nearest_value(step * x[i])
        product = weights[i] * value
        sum_qx += product * x[i]
        sum_q2 += product * value

        one, other = _nearest_value(first_step * x[i]), _nearest_value(last_step * x[i])
        ascending = one < other
        low, high = select(ascending, one, other), select(ascending, other, one)
        middles[i] = (low + high) * np.float32(0.5)
        low_product, high_product = weights[i] * low, weights[i] * high
        low_qx[i], high_qx[i] = low_product * x[i], high_product * x[i]
        low_q2[i], high_q2[i] = low_product * low, high_product * high
    scale = select(sum_q2 > ZERO, sum_qx / sum_q2, ZERO)
    best = scale * sum_qx

    for trial in range(len(_TRIALS)):
        step = _TRIALS[trial] / largest
        sum_qx, sum_q2 = fill(ZERO), fill(ZERO)
        for i in range(BLOCK):
            lower = step * x[i] < middles[i]
            sum_qx += select(lower, low_qx[i], high_qx[i])
            sum_q2 += select(lower, low_q2[i], high_q2[i])
        better = (sum_q2 > ZERO) & (sum_qx * sum_qx > best * sum_q2)
        scale = select(better, sum_qx / sum_q2, scale)
        best = select(better, scale * sum_qx, best)
    return select(something, scale, ZERO)
