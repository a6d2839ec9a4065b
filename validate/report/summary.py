"""A report as one row per artifact, for people: shared by tables, pages and cards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def summarize(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each artifact with its numbers for the text with the worst result, and the results of its gates.

    Returns:
        The members of `artifacts`, and: `status`, the worst of its gates; `gates`; `checks`, name to status, without
        those that have no result; `worst`, a result of `kl` or None.
    """
    return [_summary(report, artifact) for artifact in report["artifacts"]]


def _summary(report: Mapping[str, Any], artifact: Mapping[str, Any]) -> dict[str, Any]:
    file = artifact["file"]
    gates = [gate for gate in report["gates"]["results"] if gate["file"] == file]
    return {
        **artifact,
        "status": next((word for word in ("fail", "warn") if any(gate["status"] == word for gate in gates)), "pass"),
        "gates": gates,
        "checks": {gate["gate"]: gate["status"] for gate in gates if gate["gate"] in report["checks"]},
        "worst": worst_text([row for row in report["kl"]["results"] if row["file"] == file]),
    }


def worst_text(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The result with the largest mean KL divergence; NaN is worse than any number."""
    return max(rows, key=lambda row: math.inf if row["kl"]["mean"] is None else row["kl"]["mean"], default=None)


def together(rows: Iterable[Mapping[str, Any]], *members: str) -> list[dict[str, Any]]:
    """Merge rows that have the same values of these members, collecting their `files`; in order of first occurrence."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        same = found.setdefault(tuple(str(row[member]) for member in members), {**row, "files": []})
        if row["file"] not in same["files"]:
            same["files"].append(row["file"])
    return list(found.values())
