"""Output that several commands of mrelease share, and the exit code of a failed gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from mconv.convert.cli.console import emit_json, emit_table
from mconv.convert.errors import ValidationError
from mconv.convert.reporting import format_bytes

if TYPE_CHECKING:
    from mconv.release.files import FileDigest
    from mconv.release.plan import ReleasePlan
    from mconv.release.publish.publication import Publication
    from mconv.release.release import Release


def print_plan(plan: ReleasePlan, as_json: bool) -> None:
    """Print the plan of a release."""
    if as_json:
        emit_json(plan.to_json())
        return
    commit = f" at commit {plan.commit}" if plan.commit else ""
    click.echo(f"{plan.folder} from {plan.source}{commit}\n")
    emit_table(
        ("file", "type", "size", "bytes", "made by", "state"),
        [
            (
                item.file,
                item.type or "",
                "" if item.bytes is None else format_bytes(item.bytes),
                "" if item.bytes is None else str(item.bytes),
                item.command,
                "done" if item.done else "to do",
            )
            for item in plan.items
        ],
    )
    click.echo(
        f"\ndisk: {format_bytes(plan.needed)} needed, {format_bytes(plan.free)} free\n"
        f"time: {_duration(plan.build_seconds)} to build, {_duration(plan.check_seconds)} to check\n"
        f"repository: {plan.repository or 'none; add one to the recipe to publish'}"
    )


def print_files(release: Release, files: Mapping[str, FileDigest], as_json: bool) -> None:
    """Print the files of a release."""
    if as_json:
        rows = [
            {"path": str(release.ledger.folder / name), "bytes": digest.size, "sha256": digest.sha256}
            for name, digest in files.items()
        ]
        emit_json({"folder": str(release.ledger.folder), "files": rows})
        return
    emit_table(
        ("file", "bytes", "sha256"),
        [(str(release.ledger.folder / name), str(digest.size), digest.sha256) for name, digest in files.items()],
    )


def print_publication(publication: Publication, *, dry_run: bool, as_json: bool) -> None:
    """Print what a publication did, or, in a dry run, would do."""
    if as_json:
        emit_json({"dry_run": dry_run, **publication.to_json()})
        return
    emit_table(
        ["operation", "subject", "bytes", "sha256"],
        (
            [
                operation.verb,
                operation.subject,
                str(operation.digest.size) if operation.digest else "",
                operation.digest.sha256 if operation.digest else "",
            ]
            for operation in publication.plan.operations()
        ),
    )
    click.echo()
    if publication.commit is None:
        click.echo(f"would publish {len(publication.plan.files)} files to {publication.url}")
    else:
        click.echo(f"published {len(publication.plan.files)} files to {publication.url} at commit {publication.commit}")


def fail_on_gates(report: Mapping[str, Any], accepted: str | None) -> None:
    """End the command with exit code 1 if a gate fails and the failure is not accepted.

    Raises:
        ValidationError: a gate fails; names the first one.
    """
    from mconv.release.checking import failed_gates

    failed = failed_gates(report)
    if failed and accepted is None:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ValidationError(
            f"{failed[0]['file']}: {failed[0]['gate']} fails: {failed[0]['what']}{more}",
            "see report.html; to publish anyway, pass --accept-failed-gates REASON",
        )


def _duration(seconds: float) -> str:
    """An estimated duration for people, without seconds."""
    if seconds == 0:
        return "none"
    minutes = max(1, round(seconds / 60))
    return f"about {minutes} min" if minutes < 60 else f"about {minutes // 60} h {minutes % 60} min"
