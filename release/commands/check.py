"""mrelease check."""

from __future__ import annotations

from pathlib import Path

import click

from mconv.release.commands.options import accept_option, folder_option, json_option, recipe_argument, threads_option
from mconv.release.commands.output import fail_on_gates, print_files


@click.command("check")
@recipe_argument
@folder_option
@accept_option
@threads_option
@json_option
def command(recipe: Path, folder: Path | None, accepted: str | None, threads: int | None, as_json: bool) -> None:
    """Compare the built files with their source, and finish the release: card, provenance, checksums.

    Writes all files, then exits with code 1 if a gate fails.

    \b
    Example:
      mrelease check tiny-mistral.toml
    """
    from mconv.release.release import open_release

    with open_release(recipe, folder, threads) as release:
        report = release.check(accepted)
        print_files(release, release.files(accepted), as_json)
    fail_on_gates(report, accepted)
