"""Gates: limits from a TOML file, applied to a report. Each artifact passes, gets a warning, or fails."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mconv.convert.documents import read_toml
from mconv.convert.errors import UsageError

DEFAULT_GATES = Path(__file__).with_name("default_gates.toml")

Status = Literal["pass", "warn", "fail"]

_METRICS = {
    "kl_mean": lambda row: row["kl"]["mean"],
    "kl_p99_9": lambda row: row["kl"]["p99_9"],
    "same_top": lambda row: row["same_top"],
    "ln_ratio": lambda row: row["ln_ratio"],
}
"""The metrics that can have limits, from a result of `mval kl`."""

_AT_LEAST = frozenset({"same_top"})
_EVERY, _TYPE = "every", "type"


@dataclass(frozen=True)
class Limit:
    """The limits of a metric; None for no limit."""

    warn: float | None = None
    fail: float | None = None


Limits = Mapping[str, Mapping[str, Limit]]
"""Limits by type of artifact (the empty name applies to all types), then by metric."""


@dataclass(frozen=True)
class Gate:
    """The result of one limit, or of the findings of one check.

    Attributes:
        file: the artifact.
        gate: the metric, or the check.
        value: the worst number; for a check, how many findings fail the artifact.
        limit: the limit that was exceeded, or the `fail` limit.
        what: one sentence that names the text, tensor or token.
    """

    file: str
    gate: str
    value: float
    limit: float | None
    status: Status
    what: str


def read_gates(path: Path) -> Limits:
    """Read a gates file.

    Raises:
        UsageError: it is not TOML, or a member is not a valid limit.
        SourceError, FormatError, OSError: see `read_toml`.
    """
    content, _ = read_toml(path, "see the gates in docs/reference/mval.md")
    _known(path, content, (_EVERY, _TYPE))
    limits = {"": _limits(path, _EVERY, content.get(_EVERY, {}))}
    types = content.get(_TYPE, {})
    if not isinstance(types, dict):
        raise UsageError(f"{path}: {_TYPE} is not a table", f"write [{_TYPE}.Q4_K_M], then the limits")
    for name, members in types.items():
        limits[name] = _limits(path, f"{_TYPE}.{name}", members)
    return limits


def _limits(path: Path, table: str, members: Any) -> dict[str, Limit]:
    if not isinstance(members, dict):
        raise UsageError(f"{path}: {table} is not a table", f"write [{table}], then the limits")
    _known(path, members, tuple(_METRICS))
    return {metric: _limit(path, f"{table}.{metric}", value) for metric, value in members.items()}


def _limit(path: Path, name: str, value: Any) -> Limit:
    members = {"fail": value} if isinstance(value, (int, float)) else value
    if not isinstance(members, dict) or not all(map(_is_number, members.values())):
        metric = name.split(".")[-1]
        raise UsageError(f"{path}: {name} is not a valid limit", f"write {metric} = {{ warn = 0.05, fail = 0.1 }}")
    _known(path, members, ("warn", "fail"))
    return Limit(**{key: float(number) for key, number in members.items()})


def _is_number(value: Any) -> bool:
    # With NaN as the limit everything would pass, and an integer may be too large for a float.
    if type(value) is int:
        return abs(value) <= sys.float_info.max
    return type(value) is float and not math.isnan(value)


def _known(path: Path, members: Iterable[str], known: Sequence[str]) -> None:
    for name in members:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise UsageError(f"{path}: {name!r} is unknown", hint)


def apply_gates(report: Mapping[str, Any], limits: Limits) -> list[Gate]:
    """Apply to every artifact of a report the limits of its type, and the findings of its checks.

    Args:
        report: `artifacts`, and one member per check, as in docs/reference/json.md.
    """
    gates: list[Gate] = []
    for artifact in report["artifacts"]:
        file = artifact["file"]
        checks = {name: _of_file(report, name, file) for name in report["checks"]}
        gates += [_findings_gate(file, name, rows) for name, rows in checks.items() if rows]
        wanted = {**limits.get("", {}), **limits.get(artifact["type"], {})}
        rows = checks.get("kl", [])
        gates += [_number_gate(file, metric, limit, rows) for metric, limit in wanted.items() if rows]
    return gates


def _of_file(report: Mapping[str, Any], check: str, file: str) -> list[Mapping[str, Any]]:
    return [row for row in report[check]["results"] if row["file"] == file]


def _findings_gate(file: str, check: str, rows: Sequence[Mapping[str, Any]]) -> Gate:
    findings = [finding for row in rows for finding in row["findings"]]
    failing = [finding for finding in findings if finding["severity"] == "fail"]
    doubtful = [finding for finding in findings if finding["severity"] == "warn"]
    first = next(iter((*failing, *doubtful)), None)
    status: Status = "fail" if failing else "warn" if doubtful else "pass"
    what = f"{first['kind']}: {first['what']}" if first else f"{check}: nothing is wrong"
    return Gate(file, check, len(failing), 0, status, what)


def _number_gate(file: str, metric: str, limit: Limit, rows: Sequence[Mapping[str, Any]]) -> Gate:
    """Compare the worst result of an artifact over all texts with a limit."""
    least = metric in _AT_LEAST
    measure = _METRICS[metric]

    def badness(row: Mapping[str, Any]) -> float:
        value = measure(row)
        # NaN is worse than any number.
        return math.inf if value is None or math.isnan(value) else -value if least else value

    worst = max(rows, key=badness)
    value = measure(worst)
    bounds: tuple[tuple[Status, float | None], ...] = (("fail", limit.fail), ("warn", limit.warn))
    passed = {
        status: bound for status, bound in bounds if bound is not None and badness(worst) > (-bound if least else bound)
    }
    status: Status = next(iter(passed), "pass")
    bound = passed.get(status, limit.fail)
    relation = {"pass": "within", "warn": "beyond", "fail": "beyond"}[status]
    shown = "not a number" if value is None or math.isnan(value) else f"{value:.6g}"
    what = f"{metric} on {worst['text']} is {shown}" + ("" if bound is None else f", {relation} {bound:g}")
    return Gate(file, metric, math.nan if value is None else value, bound, status, what)
