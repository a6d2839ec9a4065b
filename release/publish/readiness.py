"""Check from the files in a release folder whether it may be published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mconv.convert.documents import read_object_if_any
from mconv.convert.errors import FormatError, UsageError
from mconv.release.checking import VALIDATION, failed_gates
from mconv.release.files import LEDGER, SUMS
from mconv.release.slsa_provenance import ACCEPTED, PROVENANCE, gate_line


def require_finished(folder: Path) -> None:
    """Reject a release that is not finished: it has no checksums yet.

    Raises:
        UsageError: it is not finished.
    """
    if (folder / LEDGER).is_file() and not (folder / SUMS).is_file():
        raise UsageError(f"{folder}: the release is not finished", "run mrelease check on its recipe")


def unaccepted_gates(folder: Path) -> list[dict[str, Any]]:
    """The gates that fail and are not accepted; empty if the folder has no results of gates.

    Raises:
        FormatError: the results cannot be read.
    """
    report, provenance = read_object_if_any(folder / VALIDATION), read_object_if_any(folder / PROVENANCE)
    try:
        failed = failed_gates(report) if report else []
        parameters = provenance["predicate"]["buildDefinition"]["externalParameters"] if failed else {}
        accepted = parameters[ACCEPTED]["gates"] if ACCEPTED in parameters else []
        return [gate for gate in failed if gate_line(gate) not in accepted]
    except (KeyError, TypeError) as error:
        raise FormatError(
            f"{folder}: {VALIDATION} and {PROVENANCE} are not what this version writes", "build the release again"
        ) from error
