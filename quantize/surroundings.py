"""Steps around a quantization: load kernels before it, warn after it."""

from __future__ import annotations

from collections.abc import Iterable

from mconv.convert.layouts.gguf.names import role_of
from mconv.convert.model.roles import Role
from mconv.convert.reporting import progress_bar, warn
from mconv.quantize import kernels
from mconv.quantize.plan import QuantizationPlan


def prepare_kernels(plans: Iterable[QuantizationPlan]) -> None:
    """Load the kernels. The first use on a machine compiles them for several seconds, so show a progress bar."""
    names = sorted({tensor.encoding for plan in plans for tensor in plan.plan.tensors} & kernels.SUPPORTED)
    with progress_bar(len(names), "kernels", "kernel") as bar:
        kernels.prepare(names, lambda _: bar.update(1))


def warn_of(plan: QuantizationPlan) -> None:
    """Warn about tensors that do not get the type of the mixture, or have no importance values."""
    if plan.fallbacks:
        first = plan.fallbacks[0]
        warn(
            f"{plan.file_type.name}: {len(plan.fallbacks)} tensors do not fit their type, "
            f"such as {first.tensor.name}: {first.type.name} instead of {first.wanted.name}"
        )
    # llama-imatrix usually leaves these two out.
    missing = [name for name in plan.missing_imatrix if role_of(name) not in (Role.TOKEN_EMBEDDING, Role.OUTPUT)]
    if missing:
        warn(f"{plan.file_type.name}: no importance values for {len(missing)} tensors, such as {missing[0]}")
