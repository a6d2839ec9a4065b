"""The error of a tensor against its reference, as sums, and its limits for each block type."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from mconv.convert.tensors.block_types import BlockType


@dataclass(frozen=True)
class Sums:
    """Sums over the values of a tensor and of its reference, in float64.

    Attributes:
        count: values summed over.
        found, reference: sums of the values.
        found_squares, reference_squares, products, squared_errors: sums of squares and products.
        largest: the largest absolute error.
    """

    count: int = 0
    found: float = 0.0
    reference: float = 0.0
    found_squares: float = 0.0
    reference_squares: float = 0.0
    products: float = 0.0
    squared_errors: float = 0.0
    largest: float = 0.0

    def add(self, other: Sums) -> Sums:
        """The sum of both."""
        total = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        return Sums(**{**total, "largest": max(self.largest, other.largest)})

    @property
    def relative_rmse(self) -> float:
        """Root of the squared errors' sum over the reference's: 0 for an exact copy, about 1.41 for an unrelated
        tensor of the same size."""
        return _ratio(self.squared_errors, self.reference_squares)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the tensor and the reference, as vectors."""
        lengths = math.sqrt(self.found_squares) * math.sqrt(self.reference_squares)
        return self.products / lengths if lengths else float(self.squared_errors == 0)

    @property
    def factor(self) -> float:
        """The factor with which the reference comes closest to the tensor; 1 for a reference of zeros."""
        return self.products / self.reference_squares if self.reference_squares else 1.0

    @property
    def scaled_rmse(self) -> float:
        """Relative RMSE that remains after multiplying the reference by `factor`."""
        rest = self.found_squares - self.factor * self.products
        return _ratio(max(rest, 0.0), self.found_squares)

    @property
    def offset(self) -> float:
        """Mean error."""
        return (self.found - self.reference) / self.count

    @property
    def shifted_rmse(self) -> float:
        """Relative RMSE that remains after adding `offset` to the reference."""
        rest = self.squared_errors - self.count * self.offset**2
        return _ratio(max(rest, 0.0), self.found_squares)


def _ratio(squares: float, of: float) -> float:
    if of:
        return math.sqrt(squares / of)
    return math.inf if squares else 0.0


@dataclass(frozen=True)
class Limits:
    """How far a correct encoding of a type may be from its reference.

    Attributes:
        relative_rmse: relative RMSE of a tensor.
        block: relative RMSE of a single block.
        run: number of neighbouring values that share a scale; 0 if values are not encoded individually.
        steps: maximum of the range of a run divided by its smallest step.
        nearest: maximum error of a value that is not clamped, in steps of its run.
        cosine: minimum cosine of a single block with its reference. Two unrelated blocks of 256 weights have 0 plus or
            minus about 0.06.
    """

    relative_rmse: float
    block: float
    run: int = 0
    steps: int = 1
    nearest: float = math.inf
    cosine: float = 0.0


LIMITS = {
    BlockType.Q1_0: Limits(1.35, 2.0),
    BlockType.Q2_0: Limits(1.1, 2.0, 32, 3, 0.505),
    BlockType.Q4_0: Limits(0.23, 0.9, 32, 15, 4.5),
    BlockType.Q4_1: Limits(0.18, 0.9, 32, 15, 2.8),
    BlockType.Q5_0: Limits(0.14, 0.9, 32, 31, 4.1),
    BlockType.Q5_1: Limits(0.08, 0.9, 32, 31, 3.0),
    BlockType.Q8_0: Limits(0.017, 0.9, 32, 255, 0.65),
    BlockType.MXFP4: Limits(0.26, 0.9, 32, 24, 2.1),
    BlockType.NVFP4: Limits(0.2, 0.99),
    BlockType.Q2_K: Limits(0.58, 0.95, 16, 3, 0.505),
    BlockType.Q3_K: Limits(0.32, 0.9, 16, 7, 0.505),
    BlockType.Q4_K: Limits(0.165, 0.9, 32, 15, 0.505),
    BlockType.Q5_K: Limits(0.08, 0.9, 32, 31, 0.505),
    BlockType.Q6_K: Limits(0.08, 0.9, 16, 63, 0.505),
    BlockType.TQ1_0: Limits(1.25, 2.0, 256, 2, 0.505, cosine=0.25),
    BlockType.TQ2_0: Limits(1.25, 2.0, 256, 2, 0.505, cosine=0.25),
    BlockType.IQ1_S: Limits(1.1, 2.0, cosine=0.25),
    BlockType.IQ1_M: Limits(1.1, 2.0, cosine=0.25),
    BlockType.IQ2_XXS: Limits(1.15, 2.0, cosine=0.25),
    BlockType.IQ2_XS: Limits(0.9, 2.0, cosine=0.25),
    BlockType.IQ2_S: Limits(0.9, 2.0, cosine=0.25),
    BlockType.IQ3_XXS: Limits(0.55, 2.0, cosine=0.25),
    BlockType.IQ3_S: Limits(0.46, 2.0, cosine=0.25),
    BlockType.IQ4_NL: Limits(0.225, 0.9, 32, 22, 1.4),
    BlockType.IQ4_XS: Limits(0.2, 0.9, 32, 22, 1.4),
}
"""Measured with ggml (llama-cpp-python 0.3.36) on rows of 2048 weights: normal, Laplace, Student's t of 3 and 4
degrees, uniform and sparse ones, columns and rows of unequal size, outlier columns of 20 times the rest; without
importance and with log-normal importance of sigma 1 and 2. Each relative RMSE is 1.5 times the largest measured;
for Q4_K 0.11, where normal weights have 0.07. The smallest cosine of a block of 256 weights was 0.34, of TQ.

With the K types, no unclamped value was off by more than half a step, with or without importance: ggml rounds
once more to the scales that it stores. Other types may keep a code that belonged to an earlier scale. In the grids of
IQ1 to IQ3 neighbours are encoded together, so the error of a single value has no limit.
"""
