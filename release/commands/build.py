"""mrelease build."""

from __future__ import annotations

from pathlib import Path

import click

from mconv.release.commands.options import (
    dry_run_option,
    folder_option,
    json_option,
    keep_partial_option,
    recipe_argument,
    threads_option,
)
from mconv.release.commands.output import print_files, print_plan


@click.command("build")
@recipe_argument
@folder_option
@threads_option
@keep_partial_option
@dry_run_option
@json_option
def command(
    recipe: Path, folder: Path | None, threads: int | None, keep_partial: bool, dry_run: bool, as_json: bool
) -> None:
    """Write the missing GGUF files of a recipe, in one read of the source.

    After an interruption, run the same command to continue. Files that a changed recipe does not affect are kept.

    \b
    Example:
      mrelease build tiny-mistral.toml
    """
    if dry_run:
        from mconv.release.plan import plan_release
        from mconv.release.release import view_release

        print_plan(plan_release(view_release(recipe, folder, threads)), as_json)
        return
    from mconv.release.release import open_release

    with open_release(recipe, folder, threads) as release:
        release.build(keep_partial=keep_partial)
        print_files(release, release.built_files(), as_json)
