"""mrelease publish."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from convert.console import emit_json, emit_table

if TYPE_CHECKING:
    from release.publish import Publication


@click.command("publish")
@click.argument("folder", type=click.Path(path_type=Path, readable=False), metavar="FOLDER")
@click.option("--repo", required=True, metavar="ORG/NAME", help="Repository on the Hub; created if it does not exist.")
@click.option("--private/--public", default=True, show_default=True, help="Visibility of a new repository.")
@click.option("--no-pr", is_flag=True, help="Commit straight to main instead of through a pull request.")
@click.option("--tag", metavar="TAG", help="Name of the published commit, such as v1.0.")
@click.option("--dry-run", is_flag=True, help="Print the operations; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def command(folder: Path, repo: str, private: bool, no_pr: bool, tag: str | None, dry_run: bool, as_json: bool) -> None:
    """Publish a release folder to the Hugging Face Hub, and verify what arrived.

    The files go into a pull request, which is merged once the size and the sum of each are right over there. When it is
    interrupted, the same command goes on.

    \b
    Examples:
      mrelease publish build/tiny-mistral --repo rosa/tiny-mistral-GGUF --dry-run
      mrelease publish build/tiny-mistral --repo rosa/tiny-mistral-GGUF --public --tag v1.0
    """
    from release.publish import publish_folder

    publication = publish_folder(folder, repo, private=private, pull_request=not no_pr, tag=tag, dry_run=dry_run)
    report(publication, dry_run=dry_run, as_json=as_json)


def report(publication: Publication, *, dry_run: bool, as_json: bool) -> None:
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
