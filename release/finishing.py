"""The finishing files of a release: card, plot, provenance, checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from mconv.release.card.card import PLOT, render_card
from mconv.release.card.numbers import has_plot
from mconv.release.files import CARD, SUMS, FileDigest
from mconv.release.inputs import ReleaseInputs
from mconv.release.ledger import Ledger
from mconv.release.project import Project
from mconv.release.slsa_provenance import PROVENANCE, describe_provenance
from mconv.release.small_files import LICENCE
from mconv.release.weights import TypeFiles


def make_finishing_files(
    project: Project,
    inputs: ReleaseInputs,
    types: Sequence[TypeFiles],
    ledger: Ledger,
    measured: Mapping[str, FileDigest],
    report: Mapping[str, Any],
    accepted: str | None,
) -> dict[str, bytes]:
    """Name to content; the checksums, which cover all others, come last.

    Args:
        measured: all other files of the release.
        report: the content of validation.json.
        accepted: the reason for accepting failed gates.
    """
    from mconv.validate.report.plots import alone, size_plot

    has_licence = LICENCE in measured
    files = {CARD: render_card(project, inputs, types, report, accepted, has_licence=has_licence)}
    plot = size_plot(report) if has_plot(report) else None
    if plot is not None:
        files[PLOT] = alone(plot).encode()
    digests = {**measured, **_digests(files)}
    files[PROVENANCE] = describe_provenance(project, inputs, ledger, digests, report, accepted)
    digests |= _digests({PROVENANCE: files[PROVENANCE]})
    files[SUMS] = "".join(f"{digests[name].sha256}  {name}\n" for name in sorted(digests)).encode()
    return files


def _digests(files: Mapping[str, bytes]) -> dict[str, FileDigest]:
    return {name: FileDigest(len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}
