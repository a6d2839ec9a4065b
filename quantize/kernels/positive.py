"""The search for one scale of values that are not negative: x is nearly scale * level, levels from 0 to 63.

This is ggml-quants.c's `make_qp_quants`, which quantizes the scales and the minima of a super-block if there is an
importance matrix.
"""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.jit import jit
from mconv.quantize.kernels.lanes import Buffer, Floats, any_lane, fill, select, to_float
from mconv.quantize.kernels.rounding import NOTHING, ONE, ZERO, nearest

_TOP = 63
_TRIALS = np.array([np.float32(0.1) * np.float32(i) + np.float32(_TOP) for i in range(-4, 5) if i], np.float32)
_PASSES = 5


@jit
def search_positive(x: Buffer, weights: Buffer, count: int, levels: Buffer) -> Floats:
    """The scale of each lane; `levels` (int32 vectors) get the level of each value, as the byte that ggml keeps."""
    high = fill(ZERO)
    for i in range(count):
        high = select(high > x[i], high, x[i])
    something = high >= NOTHING
    step = np.float32(_TOP) / high
    scale = ONE / step
    best = fill(ZERO)
    for i in range(count):
        difference = x[i] - scale * to_float(nearest(step * x[i]) & 0xFF)
        best += weights[i] * difference * difference
    for trial in range(len(_TRIALS)):
        new_step = _TRIALS[trial] / high
        new_scale = ONE / new_step
        error = fill(ZERO)
        for i in range(count):
            level = nearest(new_step * x[i])
            difference = x[i] - new_scale * to_float(select(level < _TOP, level, _TOP))
            error += weights[i] * difference * difference
        better = error < best
        best = select(better, error, best)
        step = select(better, new_step, step)

    sum_lx, sum_l2 = fill(ZERO), fill(ZERO)
    for i in range(count):
        level = nearest(step * x[i])
        level = select(level < _TOP, level, _TOP)
        levels[i] = level & 0xFF
        factor = to_float(level)
        sum_lx += weights[i] * x[i] * factor
        sum_l2 += weights[i] * factor * factor

    # One value at a time gets the level that is best for it, given the others. A pass without a change would only
    # repeat itself, so lanes that have converged lose nothing while others continue.
    for _ in range(_PASSES):
        settled = True
        for i in range(count):
            factor = to_float(levels[i])
            rest_lx = sum_lx - weights[i] * x[i] * factor
            rest_l2 = sum_l2 - weights[i] * factor * factor
            level = nearest(x[i] * rest_l2 / rest_lx)
            level = select(level < _TOP, level, _TOP)
            factor = to_float(level)
            new_lx = rest_lx + weights[i] * x[i] * factor
            new_l2 = rest_l2 + weights[i] * factor * factor
            better = (rest_lx > ZERO) & (rest_l2 > ZERO) & (level != levels[i])
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            if any_lane(better):
                settled = False
                levels[i] = select(better, level & 0xFF, levels[i])
                sum_lx = select(better, new_lx, sum_lx)
                sum_l2 = select(better, new_l2, sum_l2)
        if settled:
            break
    for i in range(count):
        levels[i] = select(something, levels[i], 0)
    return select(something & (sum_l2 > ZERO), sum_lx / sum_l2, ZERO)
