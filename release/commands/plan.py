"""mrelease plan."""

from __future__ import annotations

from pathlib import Path

import click

from mconv.release.commands.shared import (
    folder_option,
    json_option,
    looking,
    recipe_argument,
    report_overview,
    threads_option,
)


@click.command("plan")
@recipe_argument
@folder_option
@threads_option
@json_option
def command(recipe: Path, folder: Path | None, threads: int | None, as_json: bool) -> None:
    """What will be made, with exact sizes; what is done; the disk and the time that the rest takes.

    \b
    Example:
      mrelease plan tiny-mistral.toml
    """
    from mconv.release.overview import overview

    report_overview(overview(looking(recipe, folder, threads)), as_json)
