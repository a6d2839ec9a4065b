"""The verdict on a tensor, from a comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mconv.convert.tensors.block_types import BlockType
from mconv.validate.findings import Severity
from mconv.validate.weights.comparison import MOST_EXAMPLES, Comparison
from mconv.validate.weights.errors import LIMITS, Sums

Status = Literal["exact", "quantized", "different"]


@dataclass(frozen=True)
class Fault:
    """A fault of a tensor.

    Attributes:
        kind: the kind of the finding.
        what: the end of a sentence that begins with the name of the tensor.
        other: the tensor of the reference that it contains instead; empty if none.
        severity: the severity of the finding.
    """

    kind: str
    what: str
    other: str = ""
    severity: Severity = "fail"


@dataclass(frozen=True)
class Verdict:
    """The verdict on a tensor.

    Attributes:
        status: `exact`: the bytes of the encoded reference; `quantized`: an encoding of the reference by another
            quantizer, within the errors of its type; `different`: neither.
        fault: the fault, if a few values are wrong; None if all values differ, which needs a diagnosis.
    """

    status: Status
    fault: Fault | None = None


def judge(kind: BlockType, compared: Comparison, encoder_known: bool) -> Verdict:
    """The verdict on a tensor.

    Args:
        kind: type of the artifact's tensor.
        encoder_known: whether its blocks were compared with those of the encoder that wrote them.
    """
    if compared.not_finite is not None:
        row, column, value = compared.not_finite
        return Verdict("different", Fault("not_finite", f"row {row}, column {column} is {value}"))
    if not compared.unequal:
        return Verdict("exact")
    if not math.isfinite(compared.sums.squared_errors):
        return Verdict("different", Fault("not_finite", "the reference is not finite here"))
    if not kind.is_quantized:
        few = compared.unequal <= min(MOST_EXAMPLES, max(1, compared.units // 8))
        return Verdict("different", _damage(compared, compared.unequal, "values") if few else None)
    # Builds of the same encoder may choose different, equally good codes: such blocks are unequal but correct.
    # A single different bit is not such a choice.
    wrong = compared.damaged or int(encoder_known and compared.bits == 1)
    if 0 < wrong <= max(1, compared.units // 100) and is_sound(kind, compared.rest):
        return Verdict("different", _damage(compared, wrong, "blocks"))
    if not is_sound(kind, compared.sums):
        return Verdict("different")
    # If the encoder is unknown, unusual values everywhere are another quantizer's rounding. Unrelated blocks are not.
    wrong = wrong if encoder_known else compared.unlike
    return Verdict("different", _damage(compared, wrong, "blocks")) if wrong else Verdict("quantized")


def is_sound(kind: BlockType, sums: Sums) -> bool:
    """Whether a correct encoder of the type can cause such errors."""
    return sums.relative_rmse <= LIMITS[kind].relative_rmse and abs(sums.factor - 1) <= factor_slack(sums)


def factor_slack(sums: Sums) -> float:
    """How far from 1 the factor of a quantized tensor may be: the coarser the rounding, the smaller the factor.

    Measured with ggml (see LIMITS): up to 2 times the square of the relative RMSE, up to 8 times if that is below 0.03.
    """
    square = sums.scaled_rmse**2
    return 4 * square + min(0.01, 6 * square + 0.001)


def _damage(compared: Comparison, count: int, units: str) -> Fault:
    first = compared.examples[0]
    where = f"row {first.row}, column {first.column} is {first.found:.6g} and should be {first.expected:.6g}"
    if compared.bits == 1:
        return Fault("bit_flip", f"one bit differs, {first.bit}: {where}")
    kind = "bit_flip" if count <= MOST_EXAMPLES else "different"
    return Fault(kind, f"{count} of {compared.units} {units} damaged: {where}")
