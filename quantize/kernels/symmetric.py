"""The search for one scale of values of both signs: x is nearly scale * level, levels from -top to top - 1.

This is ggml-quants.c's `make_qx_quants` with `rmse_type` 1.
"""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.jit import jit
from mconv.quantize.kernels.lanes import Buffer, absolute, bits, f32_buffer, fill, from_bits, select
from mconv.quantize.kernels.rounding import MAGIC, MAGIC_BITS, NOTHING, ZERO, clamp


def trial_tops(top: int) -> np.ndarray:
    """The divisors of the largest value: first -top, then 18 trials around it. float32."""
    trials = [-(np.float32(top) + np.float32(0.1) * np.float32(i)) for i in range(-9, 10) if i]
    return np.array([-np.float32(top), *trials], np.float32)


@jit
def search_symmetric(x: Buffer, weights: Buffer, count: int, top: int, tops: np.ndarray) -> tuple:
    """The best scale of each lane's block, the step of the levels that gave it, and where the block is not zero.

    A block of zeros has scale and step 0. `tops` comes from `trial_tops`. The levels are
    `clamp(nearest(step * x), -top, top - 1)`.
    """
    weighted = f32_buffer(32)
    largest, magnitude = fill(ZERO), fill(ZERO)
    for i in range(count):
        larger = absolute(x[i]) > magnitude
        magnitude = select(larger, absolute(x[i]), magnitude)
        largest = select(larger, x[i], largest)
        weighted[i] = weights[i] * x[i]
    something = magnitude >= NOTHING

    scale, best, level_step = fill(ZERO), fill(ZERO), fill(ZERO)
    for trial in range(len(tops)):
        step = tops[trial] / largest
        sum_lx, sum_l2 = fill(ZERO), fill(ZERO)
        for i in range(count):
            # No product passes top + 1, so that clamping may come before the mask of `nearest`.
            level = from_bits(clamp(bits(step * x[i] + MAGIC), MAGIC_BITS - top, MAGIC_BITS + top - 1)) - MAGIC
            sum_lx += weighted[i] * level
            sum_l2 += weights[i] * level * level
        if trial == 0:
            scale = select(sum_l2 != ZERO, sum_lx / sum_l2, ZERO)
            best = scale * sum_lx
            level_step = step
            continue
        better = (sum_l2 > ZERO) & (sum_lx * sum_lx > best * sum_l2)
        scale = select(better, sum_lx / sum_l2, scale)
        best = select(better, scale * sum_lx, best)
        level_step = select(better, step, level_step)
    return select(something, scale, ZERO), select(something, level_step, ZERO), something
