"""Measuring the files of a release against their source: validation.json and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.console import json_text
from convert.documents import read_object
from convert.folder import write_files
from release.ledger import Ledger, Step
from release.material import Material
from release.recipe import Recipe
from release.tools import all_tools
from release.weights import TypeFiles

VALIDATION = "validation.json"
PAGE = "report.html"
# Two runs never take the same time, and a release is to be the same.
_WALL_TIMES = frozenset({"seconds", "reference_seconds", "tokens_per_second", "seconds_to_first_token"})


def validation_step(recipe: Recipe, material: Material, types: Sequence[TypeFiles], ledger: Ledger) -> Step:
    """The step that measures."""

    def inputs() -> Mapping[str, Any]:
        def sums(*paths: Path | None) -> list[str]:
            return [ledger.digest(path).sha256 for path in paths if path is not None]

        return {
            "artifacts": {name: digest.sha256 for one in types for name, digest in ledger.outputs(one.parts).items()},
            "source": {name: ledger.digest(path).sha256 for name, path in material.files.items()},
            "texts": dict(zip((text.name for text in recipe.texts), sums(*recipe.texts), strict=True)),
            "gates": sums(recipe.gates),
            "imatrix": sums(recipe.imatrix),
            "ctx": recipe.ctx,
            "chunks": recipe.chunks,
            "prompts": recipe.prompts,
            "tools": all_tools(),
        }

    return Step("validation", (VALIDATION, PAGE), inputs)


def measure(
    recipe: Recipe, material: Material, types: Sequence[TypeFiles], ledger: Ledger, step: Step, threads: int
) -> None:
    """Run every check, hold the numbers to the gates, and write what came of it.

    Raises:
        MconvError: see `make_report`.
    """
    from validate.report.make import PROMPTS, Request, make_report
    from validate.report.page import render_page

    # Whole paths, which are in no text by accident: they are taken out again.
    source = material.path.absolute()
    artifacts = [ledger.folder.absolute() / one.first for one in types]
    texts = [text.absolute() for text in recipe.texts]
    request = Request(
        artifacts,
        source,
        texts,
        hf_config=recipe.hf_config,
        imatrix=recipe.imatrix,
        ctx=recipe.ctx,
        chunks=recipe.chunks,
        prompts=recipe.prompts or PROMPTS,
        threads=threads,
    )
    ledger.begin(step)
    report = make_report(request, recipe.gates)
    names = {str(path): path.name for path in (*artifacts, *texts)}
    report = _portable(report, {**names, str(source): material.repository or material.source.stem})
    files = {VALIDATION: (json_text(report) + "\n").encode(), PAGE: render_page(report).encode()}
    write_files(ledger.folder, files)
    ledger.finish(step)


def read_validation(folder: Path) -> dict[str, Any]:
    """What was measured.

    Raises:
        SourceError, FormatError: there is no such file, or it is damaged.
    """
    return read_object(folder / VALIDATION)


def failed_gates(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The gates that the files do not pass."""
    return [gate for gate in report["gates"]["results"] if gate["status"] == "fail"]


def _portable(value: Any, names: Mapping[str, str], key: str = "") -> Any:
    """A report without what differs from machine to machine: where files lie, and how long things took."""
    if key in _WALL_TIMES:
        return None
    if isinstance(value, dict):
        return {member: _portable(item, names, member) for member, item in value.items()}
    if isinstance(value, list):
        return [_portable(item, names) for item in value]
    if isinstance(value, str):
        for path in sorted(names, key=len, reverse=True):
            value = value.replace(path, names[path])
    return value
