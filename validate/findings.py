"""Findings: one type for every check, shared by tables, JSON, pages and gates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

CHECKS = ("weights", "tokens", "template", "perplexity", "kl", "generate")
"""The commands of mval that look at artifacts, in the order of a report."""

Severity = Literal["fail", "warn", "note"]


@dataclass(frozen=True)
class Finding:
    """One fault of an artifact, or one remark about it.

    Attributes:
        check: the check that found it, one of `CHECKS`.
        kind: the kind of fault, in snake case, always the same for the same fault: `missing_tensor`.
        subject: the tensor, token, conversation or text that it is about.
        what: one sentence for people; begins with the subject.
        severity: `fail`: the artifact does not match the reference; `warn`: a person should look at it; `note`: known
            and harmless.
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
    """The findings that fail an artifact."""
    return [finding for finding in findings if finding.severity == "fail"]
