"""mrelease plan."""

from __future__ import annotations

from pathlib import Path

import click

from mconv.release.commands.options import folder_option, json_option, recipe_argument, threads_option
from mconv.release.commands.output import print_plan


@click.command("plan")
@recipe_argument
@folder_option
@threads_option
@json_option
def command(recipe: Path, folder: Path | None, threads: int | None, as_json: bool) -> None:
    """Show the files of a release with their exact sizes, what is done, and the disk space and time for the rest.

    \b
    Example:
      mrelease plan tiny-mistral.toml
    """
    from mconv.release.plan import plan_release
    from mconv.release.release import view_release

    print_plan(plan_release(view_release(recipe, folder, threads)), as_json)
