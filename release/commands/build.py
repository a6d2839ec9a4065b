"""mrelease build."""

from __future__ import annotations

from pathlib import Path

import click

from mconv.release.commands.shared import (
    dry_run_option,
    folder_option,
    json_option,
    looking,
    recipe_argument,
    report_files,
    report_overview,
    threads_option,
    working,
)


@click.command("build")
@recipe_argument
@folder_option
@threads_option
@dry_run_option
@json_option
def command(recipe: Path, folder: Path | None, threads: int | None, dry_run: bool, as_json: bool) -> None:
    """Write the GGUF files of a recipe, those that are missing, in one read of the source.

    When it is interrupted, the same command goes on. What a changed recipe does not touch is kept.

    \b
    Example:
      mrelease build tiny-mistral.toml
    """
    if dry_run:
        from mconv.release.overview import overview

        report_overview(overview(looking(recipe, folder, threads)), as_json)
        return
    with working(recipe, folder, threads) as work:
        work.build()
        report_files(work, work.ledger.outputs([*(n for one in work.types for n in one.parts), *work.extras]), as_json)
