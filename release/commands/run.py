"""mrelease run."""

from __future__ import annotations

from pathlib import Path

import click

from mconv.release.commands.publish import delete_option, no_pr_option, publish, report, repository_of
from mconv.release.commands.shared import (
    accept_option,
    dry_run_option,
    fail_on_gates,
    folder_option,
    json_option,
    looking,
    recipe_argument,
    report_overview,
    threads_option,
    working,
)


@click.command("run")
@recipe_argument
@folder_option
@no_pr_option
@delete_option
@accept_option
@threads_option
@dry_run_option
@json_option
def command(
    recipe: Path,
    folder: Path | None,
    no_pr: bool,
    delete_others: bool,
    accepted: str | None,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build, check and publish a recipe: whatever of it is not done yet.

    \b
    Example:
      mrelease run tiny-mistral.toml
    """
    if dry_run:
        from mconv.release.overview import overview

        report_overview(overview(looking(recipe, folder, threads)), as_json)
        return
    from mconv.release.publish.publish import PublishOptions

    with working(recipe, folder, threads) as work:
        # Not after hours of building.
        repository_of(work.project)
        work.build()
        fail_on_gates(work.check(accepted), accepted)
    options = PublishOptions(pull_request=not no_pr, delete_others=delete_others)
    report(publish(work, accepted, options), dry_run=False, as_json=as_json)
