"""mrelease check."""

from __future__ import annotations

from pathlib import Path

import click

from mconv.release.commands.shared import (
    accept_option,
    fail_on_gates,
    folder_option,
    json_option,
    recipe_argument,
    report_files,
    threads_option,
    working,
)


@click.command("check")
@recipe_argument
@folder_option
@accept_option
@threads_option
@json_option
def command(recipe: Path, folder: Path | None, accepted: str | None, threads: int | None, as_json: bool) -> None:
    """Measure what was built against its source, and finish the release: card, provenance, sums.

    Ends with exit code 1 if a gate fails, once everything is written.

    \b
    Example:
      mrelease check tiny-mistral.toml
    """
    with working(recipe, folder, threads) as work:
        report = work.check(accepted)
        report_files(work, work.files(accepted), as_json)
    fail_on_gates(report, accepted)
