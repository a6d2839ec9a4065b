"""mrelease publish."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from convert.console import emit_json, emit_table
from convert.errors import UsageError
from release.commands.shared import (
    accept_option,
    fail_on_gates,
    folder_option,
    json_option,
    looking,
    recipe_argument,
    working,
)

if TYPE_CHECKING:
    from release.publish import Publication
    from release.work import Work

no_pr_option = click.option("--no-pr", is_flag=True, help="Commit straight to main instead of through a pull request.")


@click.command("publish")
@recipe_argument
@folder_option
@no_pr_option
@accept_option
@click.option("--dry-run", is_flag=True, help="Print the operations; change nothing.")
@json_option
def command(recipe: Path, folder: Path | None, no_pr: bool, accepted: str | None, dry_run: bool, as_json: bool) -> None:
    """Publish a release that is built and checked to the Hugging Face Hub, and verify what arrived.

    The files go into a pull request, which is merged once the size and the sum of each are right over there. When it is
    interrupted, the same command goes on.

    \b
    Examples:
      mrelease publish tiny-mistral.toml --dry-run
      mrelease publish tiny-mistral.toml
    """
    if dry_run:
        work = looking(recipe, folder, None)
        fail_on_gates(work.require_checked(), accepted)
        report_publication(publish(work, no_pr, accepted, dry_run=True), dry_run=True, as_json=as_json)
        return
    with working(recipe, folder, None) as work:
        fail_on_gates(work.require_checked(), accepted)
        work.check(accepted)
        report_publication(publish(work, no_pr, accepted, dry_run=False), dry_run=False, as_json=as_json)


def publish(work: Work, no_pr: bool, accepted: str | None, *, dry_run: bool) -> Publication:
    """Publish a release that is finished.

    Raises:
        UsageError: the recipe names no repository, or the release is not finished.
        PublishError: see `publish_folder`.
    """
    from release.publish import publish_folder

    recipe = work.project.recipe
    if recipe.repository is None:
        raise UsageError(f"{work.project.path.name} names no repository", "add repository = 'ORGANIZATION/NAME'")
    return publish_folder(
        work.ledger.folder,
        recipe.repository,
        private=recipe.private,
        pull_request=not no_pr,
        tag=recipe.tag,
        expected=work.files(accepted),
        dry_run=dry_run,
    )


def report_publication(publication: Publication, *, dry_run: bool, as_json: bool) -> None:
    """Print what a publication did, or in a dry run would do."""
    if as_json:
        emit_json({"dry_run": dry_run, **publication.to_json()})
        return
    emit_table(
        ["operation", "subject", "bytes", "sha256"],
        (
            [
                operation.verb,
                operation.subject,
                str(operation.digest.size) if operation.digest else "",
                operation.digest.sha256 if operation.digest else "",
            ]
            for operation in publication.plan.operations()
        ),
    )
    click.echo()
    if publication.commit is None:
        click.echo(f"would publish {len(publication.plan.files)} files to {publication.url}")
    else:
        click.echo(f"published {len(publication.plan.files)} files to {publication.url} at commit {publication.commit}")
