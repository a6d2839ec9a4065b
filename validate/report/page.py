"""A report as one page of HTML that needs nothing else: no network, no script."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from convert import __version__
from convert.console import format_bytes
from convert.folder import write_files
from validate.report.plots import plots

_TEMPLATE = "page.html"


def render_page(report: Mapping[str, Any]) -> str:
    """The page.

    Args:
        report: see `validate.report.make.make_report`. Its texts come from checkpoints and are escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": format_bytes, "number": _number, "name": lambda path: PurePath(path).name}
    return environment.get_template(_TEMPLATE).render(
        report=report, plots=plots(report), summary=summarize(report), version=__version__
    )


def write_page(report: Mapping[str, Any], path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        OSError: writing failed.
    """
    write_files(path.parent, {path.name: render_page(report).encode("utf-8")})


def summarize(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row an artifact: what it is, its worst numbers over all texts, and what came of its gates."""
    return [_summary(report, artifact) for artifact in report["artifacts"]]


def _summary(report: Mapping[str, Any], artifact: Mapping[str, Any]) -> dict[str, Any]:
    file = artifact["file"]
    gates = [gate for gate in report["gates"]["results"] if gate["file"] == file]
    kl = [row for row in report["kl"]["results"] if row["file"] == file]
    worst = max(kl, key=lambda row: row["kl"]["mean"] or 0.0, default=None)
    return {
        **artifact,
        "status": next((word for word in ("fail", "warn") if any(gate["status"] == word for gate in gates)), "pass"),
        "gates": gates,
        "checks": {gate["gate"]: gate["status"] for gate in gates if gate["gate"] in report["checks"]},
        "worst": worst,
    }


def _number(value: float | None, digits: int = 4) -> str:
    """So many digits that count, without an exponent where people need none."""
    if value is None:
        return "not a number"
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{places}f}"
