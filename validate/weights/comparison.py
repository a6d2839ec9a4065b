"""The result of comparing a tensor with its reference: a value that can be added over row ranges."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mconv.validate.weights.errors import Sums

MOST_EXAMPLES = 16


@dataclass(frozen=True)
class Difference:
    """One wrong value.

    Attributes:
        row, column: its place, in Hugging Face's order.
        found: the artifact's value.
        expected: the value of the encoded reference; if the encoder is unknown, the value of the reference itself.
        bit: which bit differs, if it is a single one; otherwise empty.
    """

    row: int
    column: int
    found: float
    expected: float
    bit: str = ""


@dataclass(frozen=True)
class Comparison:
    """The result of comparing rows.

    Attributes:
        sums: sums over the values; empty if bytes are equal and errors are not needed.
        units: values of a float type, or blocks of a quantized one.
        unequal: units whose bytes differ from those of the encoded reference.
        bits: bits that differ in those, if the encoder is known.
        damaged: blocks that no encoder would have written; see `damaged_blocks`.
        unlike: damaged blocks that cannot be any rounding of the reference.
        rest: `sums` without the damaged blocks.
        examples: the first few damaged units, or, if there are none, unequal ones.
        not_finite: row, column and value of the first NaN or infinity.
    """

    sums: Sums = field(default_factory=Sums)
    units: int = 0
    unequal: int = 0
    bits: int = 0
    damaged: int = 0
    unlike: int = 0
    rest: Sums = field(default_factory=Sums)
    examples: tuple[Difference, ...] = ()
    not_finite: tuple[int, int, float] | None = None

    def add(self, other: Comparison) -> Comparison:
        """The sum of both; `other` is for later rows."""
        damaged = self.damaged + other.damaged
        told = [part.examples for part in (self, other) if part.damaged or not damaged]
        return Comparison(
            sums=self.sums.add(other.sums),
            units=self.units + other.units,
            unequal=self.unequal + other.unequal,
            bits=self.bits + other.bits,
            damaged=damaged,
            unlike=self.unlike + other.unlike,
            rest=self.rest.add(other.rest),
            examples=tuple(example for examples in told for example in examples)[:MOST_EXAMPLES],
            not_finite=self.not_finite or other.not_finite,
        )


def total(parts: Iterable[Comparison]) -> Comparison:
    """The comparison of all row ranges, given in their order."""
    whole = Comparison()
    for part in parts:
        whole = whole.add(part)
    return whole
