"""What a check found: one value for every check, so that tables, JSON, pages and gates read the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

CHECKS = ("weights", "tokens", "template", "perplexity", "kl", "generate")
"""The commands of mval that look at artifacts, in the order of a report."""

Severity = Literal["fail", "warn", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with an artifact, or worth knowing of it.

    Attributes:
        check: the one of `CHECKS` that found it.
        kind: what it is, in snake case and always the same word for the same fault: `missing_tensor`.
        subject: the tensor, token, conversation or text that it is about.
        what: one sentence for a person; begins with the subject.
        severity: `fail`: the artifact is not what the reference is; `warn`: a person should look; `note`: known and
            harmless.
    """

    check: str
    kind: str
    subject: str
    what: str
    severity: Severity = "fail"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        return asdict(self)


def failed(findings: Iterable[Finding]) -> list[Finding]:
    """Those that fail an artifact."""
    return [finding for finding in findings if finding.severity == "fail"]
