"""What several commands of mrelease share: arguments, options, and what they print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mconv.convert.cli.console import emit_json, emit_table
from mconv.convert.cli.options import json_option, path_type, threads_option
from mconv.convert.errors import ValidationError
from mconv.convert.reporting import format_bytes

if TYPE_CHECKING:
    from mconv.release.files import FileDigest
    from mconv.release.overview import Overview
    from mconv.release.release import Release

__all__ = ["json_option", "path_type", "threads_option"]

recipe_argument = click.argument("recipe", type=path_type, metavar="RECIPE.toml")
folder_option = click.option(
    "--folder",
    type=path_type,
    metavar="DIR",
    help="Where the release is built.  [default: NAME-GGUF beside the recipe]",
)


def _reason(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("it is published: say why")
    return value


dry_run_option = click.option("--dry-run", is_flag=True, help="Print what would be made; write nothing.")
accept_option = click.option(
    "--accept-failed-gates",
    "accepted",
    metavar="REASON",
    callback=_reason,
    help="Go on though a gate fails. The reason is published, on the card and in the provenance.",
)


@contextmanager
def working(recipe: Path, folder: Path | None, threads: int | None) -> Iterator[Release]:
    """The release of a recipe, for this command alone."""
    from mconv.convert.engine.threads import default_threads
    from mconv.release.project import open_project
    from mconv.release.release import open_work

    with open_work(open_project(recipe, folder), threads or default_threads()) as work:
        yield work


def looking(recipe: Path, folder: Path | None, threads: int | None) -> Release:
    """The release of a recipe as it stands."""
    from mconv.convert.engine.threads import default_threads
    from mconv.release.project import open_project
    from mconv.release.release import look_at

    return look_at(open_project(recipe, folder), threads or default_threads())


def report_overview(found: Overview, as_json: bool) -> None:
    """Print what a release will be."""
    if as_json:
        emit_json(found.to_json())
        return
    commit = f" at commit {found.commit}" if found.commit else ""
    click.echo(f"{found.folder} from {found.source}{commit}\n")
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
            for item in found.items
        ],
    )
    click.echo(
        f"\ndisk: {format_bytes(found.needed)} needed, {format_bytes(found.free)} free\n"
        f"time: {_duration(found.build_seconds)} to build, {_duration(found.check_seconds)} to check\n"
        f"goes to: {found.repository or 'no repository, the recipe names none'}"
    )


def report_files(work: Release, files: Mapping[str, FileDigest], as_json: bool) -> None:
    """Print the files that are there."""
    if as_json:
        rows = [
            {"path": str(work.ledger.folder / name), "bytes": digest.size, "sha256": digest.sha256}
            for name, digest in files.items()
        ]
        emit_json({"folder": str(work.ledger.folder), "files": rows})
        return
    emit_table(
        ("file", "bytes", "sha256"),
        [(str(work.ledger.folder / name), str(digest.size), digest.sha256) for name, digest in files.items()],
    )


def fail_on_gates(report: Mapping[str, Any], accepted: str | None) -> None:
    """End the command with exit code 1 if a gate fails and nobody accepts that.

    Raises:
        ValidationError: names the first.
    """
    from mconv.release.checking import failed_gates

    failed = failed_gates(report)
    if failed and accepted is None:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ValidationError(
            f"{failed[0]['file']}: {failed[0]['gate']} fails: {failed[0]['what']}{more}",
            "look at report.html; to publish all the same, give --accept-failed-gates REASON",
        )


def _duration(seconds: float) -> str:
    """A time as people say it: what is estimated has no seconds."""
    if seconds == 0:
        return "none"
    minutes = max(1, round(seconds / 60))
    return f"about {minutes} min" if minutes < 60 else f"about {minutes // 60} h {minutes % 60} min"
