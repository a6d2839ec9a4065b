"""Compare the files of a release with their source, and check the measurements against the gates.

The two are separate steps: changing the gates does not require new measurements.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mconv.convert.documents import json_text, read_object
from mconv.convert.engine.files import write_files
from mconv.release.inputs import ReleaseInputs
from mconv.release.ledger import Ledger, Step
from mconv.release.recipe import Recipe
from mconv.release.versions import measuring_versions
from mconv.release.weights import TypeFiles

# validation.json without the gates; not published, and hidden so that it is not mistaken for a published file.
MEASUREMENTS = ".measurements.json"
VALIDATION = "validation.json"
PAGE = "report.html"
# Durations differ from run to run, but a release must not.
_WALL_TIMES = frozenset({"seconds", "reference_seconds", "tokens_per_second", "seconds_to_first_token"})


def measurement_step(recipe: Recipe, inputs: ReleaseInputs, types: Sequence[TypeFiles], ledger: Ledger) -> Step:
    """The step that measures."""

    def decisive() -> Mapping[str, Any]:
        def sums(*paths: Path | None) -> list[str]:
            return [ledger.digest(path).sha256 for path in paths if path is not None]

        return {
            "artifacts": {name: digest.sha256 for one in types for name, digest in ledger.outputs(one.parts).items()},
            "source": {name: ledger.digest(path).sha256 for name, path in inputs.files.items()},
            "texts": dict(zip((text.name for text in recipe.texts), sums(*recipe.texts), strict=True)),
            "imatrix": sums(recipe.imatrix),
            "ctx": recipe.ctx,
            "chunks": recipe.chunks,
            "prompts": recipe.prompts,
            "tools": measuring_versions(),
        }

    return Step("measurements", (MEASUREMENTS,), decisive)


def measure(
    recipe: Recipe, inputs: ReleaseInputs, types: Sequence[TypeFiles], ledger: Ledger, step: Step, threads: int
) -> None:
    """Run every check and write the results.

    Raises:
        MconvError: see `make_report`.
    """
    from mconv.validate.report.make import PROMPTS, Request, make_report

    # Use complete paths, which do not occur in texts by accident: they are replaced afterwards.
    source = inputs.path.absolute()
    artifacts = [ledger.folder.absolute() / one.first for one in types]
    texts = [text.absolute() for text in recipe.texts]
    request = Request(
        artifacts,
        source,
        texts,
        reading=recipe.reading,
        imatrix=recipe.imatrix,
        ctx=recipe.ctx,
        chunks=recipe.chunks,
        prompts=recipe.prompts or PROMPTS,
        threads=threads,
    )
    ledger.begin(step)
    report = make_report(request, recipe.gates)
    names = {str(path): path.name for path in (*artifacts, *texts)}
    report = _portable(report, {**names, str(source): inputs.repository or inputs.stem})
    measured = {member: value for member, value in report.items() if member not in ("gates", "passed")}
    write_files(ledger.folder, {MEASUREMENTS: (json_text(measured) + "\n").encode()})
    ledger.finish(step)


def judge(folder: Path, gates: Path | None) -> dict[str, Any]:
    """Check the measurements against the gates; return the content of validation.json.

    Raises:
        UsageError: the gates file is not valid.
        SourceError, FormatError: nothing was measured, or the file is damaged.
    """
    from mconv.validate.report.gates import DEFAULT_GATES, apply_gates, read_gates

    report = read_object(folder / MEASUREMENTS)
    results = apply_gates(report, read_gates(gates or DEFAULT_GATES))
    report["gates"] = {"results": [asdict(gate) for gate in results]}
    report["passed"] = all(gate.status != "fail" for gate in results)
    # The same as after reading the file: numbers that JSON cannot represent are None.
    return dict(json.loads(json_text(report)))


def validation_text(report: Mapping[str, Any]) -> bytes:
    """The content of validation.json."""
    return (json_text(dict(report)) + "\n").encode()


def validation_files(report: Mapping[str, Any]) -> dict[str, bytes]:
    """validation.json and the same report as an HTML page."""
    from mconv.validate.report.page import render_page

    return {VALIDATION: validation_text(report), PAGE: render_page(report).encode()}


def failed_gates(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The gates that fail."""
    return [gate for gate in report["gates"]["results"] if gate["status"] == "fail"]


def _portable(value: Any, names: Mapping[str, str], key: str = "") -> Any:
    """A report without values that depend on the machine: paths and durations."""
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
