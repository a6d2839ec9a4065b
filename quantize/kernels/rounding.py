"""Rounding to integers and to half precision, with exactly the bits of ggml."""

from __future__ import annotations

import numpy as np

from mconv.quantize.kernels.jit import jit
from mconv.quantize.kernels.lanes import (
    Buffer,
    Floats,
    Ints,
    absolute,
    bits,
    fill,
    from_bits,
    select,
    to_float,
    truncate,
)

ZERO = np.float32(0)
ONE = np.float32(1)
NOTHING = np.float32(1e-15)  # a block whose largest magnitude is below this counts as zero (GROUP_MAX_EPS)
_HALF = np.float32(0.5)

MAGIC = np.float32(12582912)  # 1.5 * 2^23: in a sum with it the last bit of a float32 is worth 1
MAGIC_BITS = 0x4B400000


@jit
def nearest(value: Floats) -> Ints:
    """The nearest integer, half to even; outside +-2^22, the result of ggml (ggml-quants.c `nearest_int`).

    The low 23 bits of `value + MAGIC` are the integer plus 2^22. Infinities and NaN have such bits too, and kernels
    meet both: a subnormal scale has an infinite reciprocal.
    """
    return (bits(value + MAGIC) & 0x7FFFFF) - 0x400000


@jit
def clamp(value: Ints, low: int, high: int) -> Ints:
    value = select(value > low, value, low)
    return select(value < high, value, high)


@jit
def _within_int32(value: Floats) -> Floats:
    # Beyond an int32, x86 converts to one whose low byte is 0, and ggml keeps that byte.
    return select(absolute(value) < np.float32(2.0**31), value, ZERO)


@jit
def toward_zero(value: Floats) -> Ints:
    """The integer part; 0 for NaN and beyond an int32."""
    return truncate(_within_int32(value))


@jit
def nearest_away(value: Floats) -> Ints:
    """The nearest integer, half away from zero as C's `roundf`; 0 for NaN and beyond an int32."""
    value = _within_int32(value)
    whole = truncate(value)
    rest = value - to_float(whole)
    return whole + select(rest >= _HALF, fill(1), 0) - select(rest <= -_HALF, fill(1), 0)


@jit
def half_bits(value: Floats) -> Ints:
    """float32 -> the bits of the nearest float16, half to even (ggml-impl.h `ggml_compute_fp32_to_fp16`)."""
    magnitude = bits(value) & 0x7FFFFFFF
    normal = (magnitude + ((magnitude >> 13) & 1) + (0xFFF - (112 << 23))) >> 13
    subnormal = bits(from_bits(magnitude) + _HALF) - 0x3F000000  # the last bit of 0.5 is worth 2^-24
    half = select(magnitude < 0x38800000, subnormal, normal)
    half = select(magnitude > 0x477FFFFF, 0x7C00, half)
    half = select(magnitude > 0x7F800000, 0x7E00, half)
    return half | ((bits(value) >> 16) & 0x8000)


@jit
def half_value(half: Ints) -> Floats:
    """The bits of a float16 -> its value."""
    magnitude = (half & 0x7FFF) << 13
    scaled = bits(from_bits(magnitude) * np.float32(2.0**112))  # the difference of the exponents' biases
    scaled = select(magnitude > (0x7C00 << 13) - 1, scaled | 0x7F800000, scaled)
    return from_bits(scaled | ((half & 0x8000) << 16))


@jit
def dword(levels: Buffer, at: int) -> Ints:
    """Four levels of 0 to 255 from `at` on, the first in the lowest byte."""
    return levels[at] | (levels[at + 1] << 8) | (levels[at + 2] << 16) | (levels[at + 3] << 24)
