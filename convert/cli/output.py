"""What a command prints about the files that it wrote, or would write."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.cli.console import emit_table

if TYPE_CHECKING:
    from mconv.convert.engine.plan import Plan


def describe(plan: Plan, path: Path, kind: str, dry_run: bool) -> dict[str, object]:
    """A description of a written (or planned) file, for JSON."""
    members: dict[str, object] = {
        "path": str(path),
        "type": kind,
        "bytes": plan.size,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "tensors": plan.type_counts,
    }
    if dry_run:
        members["plan"] = plan.describe_tensors()
    return members


def print_tensors(rows: Iterable[dict[str, Any]]) -> None:
    """Print a table of tensors, as returned by `Plan.describe_tensors`."""
    emit_table(
        ["tensor", "shape", "type", "bytes"],
        ([str(row["name"]), "x".join(map(str, row["shape"])), str(row["type"]), str(row["bytes"])] for row in rows),
    )
