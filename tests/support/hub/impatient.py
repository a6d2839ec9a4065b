"""`mrelease publish` for tests: the same function and output, with short waits between attempts."""

from __future__ import annotations

from pathlib import Path

import click

from mconv.convert.hub.patience import Patience
from mconv.release.commands.output import print_publication
from mconv.release.publish.publication import PublishOptions, publish_folder

PATIENCE = Patience(attempts=4, first_wait=0.02, longest_total=3.0, silence=2.0)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--public", is_flag=True)
@click.option("--no-pr", is_flag=True)
@click.option("--delete-others", is_flag=True)
@click.option("--tag")
def command(folder: Path, repo: str, public: bool, no_pr: bool, delete_others: bool, tag: str | None) -> None:
    """Publish a folder."""
    options = PublishOptions(pull_request=not no_pr, delete_others=delete_others)
    publication = publish_folder(folder, repo, private=not public, tag=tag, options=options, patience=PATIENCE)
    print_publication(publication, dry_run=False, as_json=True)
