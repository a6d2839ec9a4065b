"""Arguments and options that several commands of mrelease share."""

from __future__ import annotations

import click

from mconv.convert.cli.options import json_option, keep_partial_option, path_type, threads_option

__all__ = ["json_option", "keep_partial_option", "path_type", "threads_option"]


def _check_reason(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("it is published: say why")
    return value


recipe_argument = click.argument("recipe", type=path_type, metavar="RECIPE.toml")
folder_option = click.option(
    "--folder",
    type=path_type,
    metavar="DIR",
    help="Where the release is built.  [default: NAME-GGUF beside the recipe]",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print what would be made; write nothing.")
accept_option = click.option(
    "--accept-failed-gates",
    "accepted",
    metavar="REASON",
    callback=_check_reason,
    help="Go on though a gate fails. The reason is published, on the card and in the provenance.",
)
no_pr_option = click.option("--no-pr", is_flag=True, help="Commit straight to main instead of through a pull request.")
delete_option = click.option(
    "--delete-others", is_flag=True, help="Delete what the repository has besides the release, but .gitattributes."
)
