"""What comparing a tensor with its reference gives; a value that adds up over row ranges."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mconv.validate.weights.errors import Sums

MOST_EXAMPLES = 16


@dataclass(frozen=True)
class Difference:
    """One value that is not what it should be.

    Attributes:
        row, column: where, in Hugging Face's order.
        found: the artifact's value.
        expected: what the encoded reference holds there; where nobody knows the encoder, the reference's own value.
        bit: where a single bit makes the difference, which it is; else empty.
    """

    row: int
    column: int
    found: float
    expected: float
    bit: str = ""


@dataclass(frozen=True)
class Comparison:
    """What comparing rows gave.

    Attributes:
        sums: of the values; empty where equal bytes made it pointless.
        units: values of a float type, or blocks of a quantized one.
        unequal: units that are not the bytes that encoding the reference gives.
        bits: bits that differ in those, where the encoder is known.
        damaged: blocks that no encoder would have written, see `damaged_blocks`.
        unlike: those of them that are no rounding of the reference at all, whoever did it.
        rest: `sums` without the damaged ones.
        examples: the first few damaged units, or where there are none, unequal ones.
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
        """Both together, `other` being of later rows."""
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
