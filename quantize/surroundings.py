"""What a command does around a quantization: kernels before it, warnings after it."""

from __future__ import annotations

from collections.abc import Iterable

from mconv.convert.cli.console import note
from mconv.convert.layouts.gguf.names import role_of
from mconv.convert.model.roles import Role
from mconv.quantize import kernels
from mconv.quantize.plan import QuantizationPlan


def prepare_kernels(plans: Iterable[QuantizationPlan]) -> None:
    """Load the kernels. Their first use on a machine compiles them: seconds that must not look like a hang."""
    from tqdm import tqdm

    names = sorted({tensor.encoding for plan in plans for tensor in plan.plan.tensors} & kernels.SUPPORTED)
    with tqdm(total=len(names), desc="kernels", unit="kernel", disable=None, leave=False) as bar:

        def begin(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        kernels.prepare(names, begin)


def warn(plan: QuantizationPlan) -> None:
    """Say which tensors do not get what the file type promises."""
    if plan.fallbacks:
        first = plan.fallbacks[0]
        note(
            f"warning: {plan.file_type.name}: {len(plan.fallbacks)} tensors do not fit their type, "
            f"such as {first.tensor.name}: {first.type.name} instead of {first.wanted.name}"
        )
    # llama-imatrix leaves these two out as a rule.
    missing = [name for name in plan.missing_imatrix if role_of(name) not in (Role.TOKEN_EMBEDDING, Role.OUTPUT)]
    if missing:
        note(
            f"warning: {plan.file_type.name}: the importance matrix lacks {len(missing)} tensors, such as {missing[0]}"
        )
