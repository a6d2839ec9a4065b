"""What a command does around a quantization: kernels before it, warnings after it."""

from __future__ import annotations

from collections.abc import Iterable

from mconv.convert.layouts.gguf.names import role_of
from mconv.convert.model.roles import Role
from mconv.convert.reporting import progress_bar, warn
from mconv.quantize import kernels
from mconv.quantize.plan import QuantizationPlan


def prepare_kernels(plans: Iterable[QuantizationPlan]) -> None:
    """Load the kernels. Their first use on a machine compiles them: seconds that must not look like a hang."""
    names = sorted({tensor.encoding for plan in plans for tensor in plan.plan.tensors} & kernels.SUPPORTED)
    with progress_bar(len(names), "kernels", "kernel") as bar:
        kernels.prepare(names, lambda _: bar.update(1))


def warn_of(plan: QuantizationPlan) -> None:
    """Say which tensors do not get what the file type promises."""
    if plan.fallbacks:
        first = plan.fallbacks[0]
        warn(
            f"{plan.file_type.name}: {len(plan.fallbacks)} tensors do not fit their type, "
            f"such as {first.tensor.name}: {first.type.name} instead of {first.wanted.name}"
        )
    # llama-imatrix leaves these two out as a rule.
    missing = [name for name in plan.missing_imatrix if role_of(name) not in (Role.TOKEN_EMBEDDING, Role.OUTPUT)]
    if missing:
        warn(f"{plan.file_type.name}: the importance matrix lacks {len(missing)} tensors, such as {missing[0]}")
