"""The search for a scale and a minimum: x is nearly scale * level + low, with levels from 0 to `top`.

This is ggml-quants.c's `make_qkx2_quants` and `make_qkx3_quants` (which differ in their table of trial steps, and in
where their weights come from) with `use_mad` false.
"""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.jit import jit
from mconv.quantize.kernels.lanes import (
    Buffer,
    Floats,
    absolute,
    any_lane,
    bits,
    f32_buffer,
    fill,
    from_bits,
    invert,
    select,
    sqrt,
    to_float,
)
from mconv.quantize.kernels.rounding import MAGIC, MAGIC_BITS, ONE, ZERO, clamp, nearest

_EXACT = np.float32(4194303)  # below it, `MAGIC` rounding is plain rounding


def trial_tops(top: int, start: float, delta: float, steps: int) -> np.ndarray:
    """The divisors of a block's range: first `top`, then `steps` + 1 trials around it. float32."""
    delta32, start32 = np.float32(delta), np.float32(start)
    trials = [start32 + delta32 * np.float32(i) + np.float32(top) for i in range(steps + 1)]
    return np.array([np.float32(top), *trials], np.float32)


@jit
def importance(x: Buffer, weights: Buffer, count: int, variance: Floats) -> None:
    """Turn the importance of columns into weights of elements: w * sqrt(variance + x^2), in place."""
    for i in range(count):
        weights[i] = weights[i] * sqrt(variance + x[i] * x[i])


@jit
def _levels(x: Buffer, count: int, step: Floats, low: Floats, top: int, levels: Buffer) -> None:
    """Round and clamp (x - low) * step, where no product reaches 2^22: then clamping may come before the mask."""
    for i in range(count):
        level = clamp(bits(step * (x[i] - low) + MAGIC), MAGIC_BITS, MAGIC_BITS + top)
        levels[i] = from_bits(level) - MAGIC


@jit
def _wild_levels(x: Buffer, count: int, step: Floats, low: Floats, top: int, levels: Buffer) -> None:
    for i in range(count):
        levels[i] = to_float(clamp(nearest(step * (x[i] - low)), 0, top))


@jit
def _squared_error(x: Buffer, weights: Buffer, levels: Buffer, count: int, scale: Floats, low: Floats) -> Floats:
    error = fill(ZERO)
    for i in range(count):
        difference = scale * levels[i] + low - x[i]
        error += weights[i] * (difference * difference)
    return error


@jit
def search_affine(x: Buffer, weights: Buffer, count: int, tops: np.ndarray) -> tuple:
    """The best scale and low (<= 0) of each lane's block, and the step and low of the levels that gave them.

    Blocks of one value have scale 0. `tops` comes from `trial_tops`. The levels are
    `clamp(nearest(level_step * (x - level_low)), 0, top)`.
    """
    levels = f32_buffer(32)
    top = int(tops[0])
    least = x[0]
    high = x[0]
    sum_w = weights[0]
    sum_x = sum_w * x[0]
    for i in range(1, count):
        least = select(x[i] < least, x[i], least)
        high = select(x[i] > high, x[i], high)
        sum_w += weights[i]
        sum_x += weights[i] * x[i]
    low = select(least > ZERO, ZERO, least)
    varied = high > low
    scale, best = fill(ZERO), fill(ZERO)
    level_step, level_low = fill(ZERO), low

    for trial in range(len(tops)):
        step = tops[trial] / (high - low)
        tame = (absolute(step * (least - low)) < _EXACT) & (absolute(step * (high - low)) < _EXACT)
        if any_lane(varied & invert(tame)):
            _wild_levels(x, count, step, low, top, levels)
        else:
            _levels(x, count, step, low, top, levels)
        if trial == 0:
            scale = ONE / step
            level_step = step
            best = _squared_error(x, weights, levels, count, scale, low)
            continue

        sum_l, sum_l2, sum_xl = fill(ZERO), fill(ZERO), fill(ZERO)
        for i in range(count):
            product = weights[i] * levels[i]
            sum_l += product
            sum_l2 += product * levels[i]
            sum_xl += product * x[i]
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        positive = new_low > ZERO
        if any_lane(positive):
            new_low = select(positive, ZERO, new_low)
            new_scale = select(positive, sum_xl / sum_l2, new_scale)
        error = _squared_error(x, weights, levels, count, new_scale, new_low)

        better = (error < best) & (determinant > ZERO) & varied
        best = select(better, error, best)
        scale = select(better, new_scale, scale)
        level_step = select(better, step, level_step)
        level_low = select(better, low, level_low)
        low = select(better, new_low, low)
    return select(varied, scale, ZERO), low, select(varied, level_step, ZERO), level_low
