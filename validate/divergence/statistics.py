"""Means with their errors, and quantiles, as in llama-perplexity --kl-divergence."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Distribution:
    """The distribution of a value over the tokens. `p99_9` is the value that 99.9 % of the tokens do not exceed.

    Quantiles between two tokens are interpolated; the standard error is that of the mean.
    """

    mean: float
    standard_error: float
    median: float
    max: float
    p99_9: float
    p99: float
    p95: float
    p90: float
    p10: float
    p5: float
    p1: float
    p0_1: float
    min: float
    p75: float
    p25: float

    @classmethod
    def of(cls, values: np.ndarray) -> Distribution:
        """The distribution of float64[tokens]."""
        import numpy as np

        mean, error = mean_and_error(values.sum(), np.square(values).sum(), len(values))
        fractions = (0.5, 1, 0.999, 0.99, 0.95, 0.9, 0.1, 0.05, 0.01, 0.001, 0, 0.75, 0.25)
        # Interpolation between infinities gives NaN, which needs no warning.
        with np.errstate(invalid="ignore"):
            return cls(mean, error, *map(float, np.quantile(values, fractions)))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        return asdict(self)


def mean_and_error(total: float, squares: float, count: int) -> tuple[float, float]:
    """A mean, and its standard error: the square root of (population variance / (count - 1)).

    Args:
        total: sum of the values.
        squares: sum of their squares.
        count: the number of values; with fewer than two, the error is NaN.
    """
    mean = float(total) / count
    if count < 2:
        return mean, math.nan
    variance = float(squares) / count - mean * mean
    # Rounding may make a variance of zero slightly negative; max would hide NaN.
    return mean, math.sqrt((0.0 if variance < 0 else variance) / (count - 1))
