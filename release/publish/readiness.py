"""Whether a release folder may be published, by what it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mconv.convert.documents import read_object_if_any
from mconv.convert.errors import FormatError, UsageError
from mconv.release.checking import VALIDATION, failed_gates
from mconv.release.files import LEDGER, SUMS
from mconv.release.slsa_provenance import ACCEPTED, PROVENANCE, gate_line


def require_finished(folder: Path) -> None:
    """Refuse a release that is still being made: it has no sums until it is whole.

    Raises:
        UsageError: it is.
    """
    if (folder / LEDGER).is_file() and not (folder / SUMS).is_file():
        raise UsageError(f"{folder}: the release is not finished", "run mrelease check on its recipe")


def unaccepted_gates(folder: Path) -> list[dict[str, Any]]:
    """The gates that fail and that nobody has accepted; none in a folder that says nothing of gates.

    Raises:
        FormatError: what it says cannot be understood.
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
