"""A report in a row an artifact, for people: tables, pages and cards show the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def summarize(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each artifact is, its numbers on the text that it is worst at, and what came of its gates.

    Returns:
        The members of `artifacts`, and: `status`, the worst of its gates; `gates`; `checks`, name to status, without
        those that gave no result; `worst`, a result of `kl` or None.
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
    """The result with the largest mean KL divergence; what is not a number is worse than anything."""
    return max(rows, key=lambda row: math.inf if row["kl"]["mean"] is None else row["kl"]["mean"], default=None)


def together(rows: Iterable[Mapping[str, Any]], *members: str) -> list[dict[str, Any]]:
    """Rows that are the same in these members as one, with all their `files`; in the order of the first of each."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        same = found.setdefault(tuple(str(row[member]) for member in members), {**row, "files": []})
        if row["file"] not in same["files"]:
            same["files"].append(row["file"])
    return list(found.values())
