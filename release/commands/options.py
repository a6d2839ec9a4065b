"""Arguments and options that several commands of mrelease share."""

from __future__ import annotations

import click

from mconv.convert.cli.options import json_option, keep_partial_option, path_type, threads_option

__all__ = ["json_option", "keep_partial_option", "path_type", "threads_option"]


def _check_reason(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("the reason is published and must not be empty")
    return value


recipe_argument = click.argument("recipe", type=path_type, metavar="RECIPE.toml")
folder_option = click.option(
    "--folder",
    type=path_type,
    metavar="DIR",
    help="Folder of the release.  [default: NAME-GGUF beside the recipe]",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print what would be written; write nothing.")
accept_option = click.option(
    "--accept-failed-gates",
    "accepted",
    metavar="REASON",
    callback=_check_reason,
    help="Continue even if a gate fails. REASON is published on the card and in the provenance.",
)
no_pr_option = click.option("--no-pr", is_flag=True, help="Commit directly to main, without a pull request.")
delete_option = click.option(
    "--delete-others", is_flag=True, help="Delete all other files of the repository, except .gitattributes."
)
