"""The provenance of a release, as an in-toto statement with a SLSA provenance predicate.

Formats: in-toto Attestation Framework, spec/v1/statement.md and resource_descriptor.md; SLSA v1.0, provenance.md.
It does not depend on the machine, the folder or the time, so the same build gives the same bytes.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mconv.release.checking import failed_gates
from mconv.release.files import FileDigest
from mconv.release.inputs import ReleaseInputs
from mconv.release.ledger import Ledger
from mconv.release.project import Project
from mconv.release.recipe import portable_text
from mconv.release.versions import measuring_versions

PROVENANCE = "provenance.json"
ACCEPTED = "acceptedFailedGates"
BUILD_TYPE = "urn:mconv:mrelease:build:1"
_BUILDER = "urn:mconv:mrelease"


def describe_provenance(
    project: Project,
    inputs: ReleaseInputs,
    ledger: Ledger,
    files: Mapping[str, FileDigest],
    report: Mapping[str, Any],
    accepted: str | None,
) -> bytes:
    """Write the statement.

    Args:
        files: all files of the release, except the statement itself, the checksums and the signature.
        report: the content of validation.json.
        accepted: the reason for accepting failed gates.
    """
    parameters: dict[str, Any] = {"recipe": tomllib.loads(portable_text(project.text))}
    if accepted is not None:
        parameters[ACCEPTED] = {"reason": accepted, "gates": [gate_line(gate) for gate in failed_gates(report)]}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": files[name].sha256}} for name in sorted(files)],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": parameters,
                "resolvedDependencies": [*_dependencies(project, inputs, ledger)],
            },
            "runDetails": {"builder": {"id": _BUILDER, "version": measuring_versions()}},
        },
    }
    return (json.dumps(statement, indent=2, ensure_ascii=False) + "\n").encode()


def gate_line(gate: Mapping[str, Any]) -> str:
    """A failed gate, as written in the statement."""
    return f"{gate['file']}: {gate['gate']}: {gate['what']}"


def _dependencies(project: Project, inputs: ReleaseInputs, ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Resource descriptors of all inputs."""
    recipe = project.recipe
    commit = inputs.text("mconv.source.revision")
    if commit is not None:
        # Only a source downloaded from the Hub is known to exist there.
        where = {"uri": f"https://huggingface.co/{inputs.repository}"} if inputs.repository else {}
        yield {"name": "source", **where, "digest": {"gitCommit": commit}}
    for name, path in inputs.files.items():
        yield _file(ledger, f"source/{name}", path)
    optional = (("imatrix", recipe.imatrix), ("gates", recipe.gates), ("licence", recipe.licence_file))
    for kind, file in optional:
        if file is not None:
            yield _file(ledger, f"{kind}/{file.name}", file)
    for text in recipe.texts:
        yield _file(ledger, f"text/{text.name}", text)


def _file(ledger: Ledger, name: str, path: Path) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": ledger.digest(path).sha256}}
