"""A report as a self-contained HTML page, without network access or scripts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mconv.convert import __version__
from mconv.convert.reporting import format_bytes
from mconv.validate.report.names import short_names
from mconv.validate.report.plots import plots
from mconv.validate.report.summary import summarize, together

_TEMPLATE = "page.html"


def render_page(report: Mapping[str, Any]) -> str:
    """The page.

    Args:
        report: see `mconv.validate.report.make.make_report`. Its texts come from checkpoints and are escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = short_names([report["reference"], *(artifact["file"] for artifact in report["artifacts"])])
    names = files | short_names([row["text"] for row in report["kl"]["results"]])
    environment.filters |= {
        "bytes": format_bytes,
        "number": _number,
        "percent": lambda share, places=2: "not a number" if share is None else f"{100 * share:.{places}f} %",
        "name": lambda path: names.get(path, path),
        "together": together,
    }
    findings = [
        {"file": row["file"], **finding}
        for severity in ("fail", "warn", "note")
        for check in report["checks"]
        for row in report[check]["results"]
        for finding in row["findings"]
        if finding["severity"] == severity
    ]
    return environment.get_template(_TEMPLATE).render(
        report=report,
        plots=plots(report),
        summary=summarize(report),
        findings=findings,
        differences=[*_differences(report)],
        texts=_grouped((row["text"], row) for row in report["kl"]["results"]),
        answers=_grouped(_answers(report)),
        version=__version__,
    )


def _differences(report: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The first difference of tokens in each group of texts and in each conversation."""
    for row in report["tokens"]["results"]:
        for group in row["groups"]:
            if group["first"]:
                yield {"file": row["file"], "of": group["name"], **group["first"]}
    for row in report["template"]["results"]:
        for conversation in row["conversations"]:
            if conversation["difference"]:
                yield {"file": row["file"], "of": conversation["name"], **conversation["difference"]}


def _answers(report: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The prompts, with and without template, and the answer of each model, the reference first."""
    for row in sorted(report["generate"]["results"], key=lambda row: row["file"] != report["reference"]):
        way = "through the chat template" if row["template"] else "as the beginning of a text"
        drawn = f", drawn with seed {row['seed']}" if row["sampling"] else ""
        yield f"{row['prompt']!r} {way}{drawn}", row


def _grouped(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by a title, in the order of the first of each."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for title, row in rows:
        found.setdefault(title, []).append(row)
    return found


def _number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits, without an exponent if it is readable without one."""
    if value is None:
        return "not a number"
    if value and not 1e-4 <= abs(value) < 1e7:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{places}f}"
