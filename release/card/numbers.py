"""The numbers on a card, all read from validation.json and formatted for people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mconv.convert.reporting import format_bytes
from mconv.release.card.markdown import Markdown, escape
from mconv.release.weights import TypeFiles

_CHECKS = {
    "weights": "every tensor against the original's: carried exactly, or within the error of its type",
    "tokens": "whether text becomes the same tokens, special tokens included",
    "template": "whether conversations become the same prompts",
    "perplexity": "perplexity on the texts below",
    "kl": "KL divergence of the next token's distribution from the original's, on the texts below",
    "generate": "whether answers end, do not loop, and spell out no control tokens",
}


@dataclass(frozen=True)
class Row:
    """A row of the table of files: one type."""

    file: str
    type: str
    size: str
    bits: str
    perplexity: str
    kl_mean: str
    kl_tail: str
    same_top: str
    note: Markdown


@dataclass(frozen=True)
class Check:
    """The result of a check."""

    name: str
    what: str
    result: str


def table_rows(types: Sequence[TypeFiles], report: Mapping[str, Any], recommended: str) -> Iterator[Row]:
    """The artifacts, largest first; with several texts, the numbers of the text with the worst result."""
    from mconv.validate.report.summary import summarize

    files = {one.first: one for one in types}
    rows = sorted(summarize(report), key=lambda row: (-row["bytes"], row["file"]))
    closest = min(rows, key=lambda row: _or_infinity(row["worst"]["kl"]["mean"]))
    for row in rows:
        one, worst = files[row["file"]], row["worst"]
        notes = {
            "**recommended**": one.type == recommended,
            "closest to the original": row is closest and len(rows) > 1,
            "smallest": row is rows[-1] and len(rows) > 1,
            f"in {len(one.parts)} parts": len(one.parts) > 1,
            **{f"**fails {escape(gate['gate'])}**": gate["status"] == "fail" for gate in row["gates"]},
        }
        yield Row(
            file=row["file"],
            type=one.type,
            size=format_bytes(row["bytes"]),
            bits=f"{row['bits_per_weight']:.2f}",
            perplexity=_with_error(worst["perplexity"], worst["perplexity_standard_error"]),
            kl_mean=_show(worst["kl"]["mean"], ".6f"),
            kl_tail=_show(worst["kl"]["p99_9"], ".6f"),
            same_top=_show(worst["same_top"], ".2%"),
            note=Markdown(", ".join(note for note, applies in notes.items() if applies)),
        )


def text_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each text: how much of it was measured, and the perplexity of the original."""
    return [
        {**row, "shown": _with_error(row["perplexity"], row["standard_error"])}
        for row in report["perplexity"]["results"]
        if row["file"] == report["reference"]
    ]


def check_rows(types: Sequence[TypeFiles], report: Mapping[str, Any]) -> Iterator[Check]:
    """Each check, with its findings and the types that have them."""
    names = {one.first: one.type for one in types}
    for check in report["checks"]:
        found: dict[str, list[str]] = {}
        for gate in report["gates"]["results"]:
            if gate["gate"] == check and gate["status"] != "pass":
                # The sentence begins with the kind of the finding.
                finding = str(gate["what"]).split(":")[0].replace("_", " ")
                found.setdefault(f"{gate['status']}: {finding}", []).append(names[gate["file"]])
        result = "; ".join(f"{what} ({', '.join(where)})" for what, where in found.items())
        yield Check(check, _CHECKS.get(check, ""), result or "pass")


def has_plot(report: Mapping[str, Any]) -> bool:
    """Whether the report has divergences to plot against size."""
    return any(row["kl"]["mean"] for row in report["kl"]["results"])


def _with_error(value: float | None, error: float | None) -> str:
    return f"{_show(value, '.4f')} ± {_show(error, '.4f')}"


def _show(value: float | None, form: str) -> str:
    return "not a number" if value is None else format(value, form)


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value
