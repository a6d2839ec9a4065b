"""mrelease run."""

from __future__ import annotations

from pathlib import Path

import click

from mconv.release.commands.options import (
    accept_option,
    delete_option,
    dry_run_option,
    folder_option,
    json_option,
    keep_partial_option,
    no_pr_option,
    recipe_argument,
    threads_option,
)
from mconv.release.commands.output import fail_on_gates, print_plan, print_publication


@click.command("run")
@recipe_argument
@folder_option
@no_pr_option
@delete_option
@accept_option
@threads_option
@keep_partial_option
@dry_run_option
@json_option
def command(
    recipe: Path,
    folder: Path | None,
    no_pr: bool,
    delete_others: bool,
    accepted: str | None,
    threads: int | None,
    keep_partial: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build, check and publish the release of a recipe; skip what is already done.

    \b
    Example:
      mrelease run tiny-mistral.toml
    """
    if dry_run:
        from mconv.release.plan import plan_release
        from mconv.release.release import view_release

        print_plan(plan_release(view_release(recipe, folder, threads)), as_json)
        return
    from mconv.release.publish.publication import PublishOptions, publish_release
    from mconv.release.release import open_release

    with open_release(recipe, folder, threads) as release:
        # Fail now, not after hours of building.
        release.project.require_repository()
        release.build(keep_partial=keep_partial)
        fail_on_gates(release.check(accepted), accepted)
    options = PublishOptions(pull_request=not no_pr, delete_others=delete_others)
    print_publication(publish_release(release, accepted, options), dry_run=False, as_json=as_json)
