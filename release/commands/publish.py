"""mrelease publish."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mconv.convert.cli.console import emit_json, emit_table
from mconv.convert.errors import UsageError, ValidationError
from mconv.release.commands.shared import (
    accept_option,
    fail_on_gates,
    folder_option,
    json_option,
    looking,
    path_type,
    working,
)

if TYPE_CHECKING:
    from mconv.release.project import Project
    from mconv.release.publish.publish import Publication, PublishOptions
    from mconv.release.release import Release

delete_option = click.option(
    "--delete-others", is_flag=True, help="Delete what the repository has besides the release, but .gitattributes."
)
no_pr_option = click.option("--no-pr", is_flag=True, help="Commit straight to main instead of through a pull request.")


@click.command("publish")
@click.argument("target", type=path_type, metavar="RECIPE.toml|FOLDER")
@click.option("--repo", metavar="ORG/NAME", help="Of a FOLDER: repository on the Hub; created if it does not exist.")
@click.option(
    "--private/--public", default=None, help="Of a FOLDER: visibility of a new repository.  [default: private]"
)
@click.option("--tag", metavar="TAG", help="Of a FOLDER: name of the published commit, such as v1.0.")
@folder_option
@no_pr_option
@delete_option
@accept_option
@click.option("--dry-run", is_flag=True, help="Print the operations; change nothing.")
@json_option
def command(
    target: Path,
    repo: str | None,
    private: bool | None,
    tag: str | None,
    folder: Path | None,
    no_pr: bool,
    delete_others: bool,
    accepted: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish a release to the Hugging Face Hub, and verify what arrived.

    Of a recipe, the release that is built and checked; else the FOLDER of one. The files go into a pull request, which
    is merged once the size and the sum of each are right over there. When it is interrupted, the same command goes on.

    \b
    Examples:
      mrelease publish tiny-mistral.toml --dry-run
      mrelease publish build/tiny-mistral --repo rosa/tiny-mistral-GGUF --public --tag v1.0
    """
    from mconv.release.publish.publish import PublishOptions

    options = PublishOptions(pull_request=not no_pr, delete_others=delete_others, dry_run=dry_run)
    if target.is_dir():
        _refuse("of a FOLDER", folder=folder, accept_failed_gates=accepted)
        publication = _publish_folder(target, repo, private, tag, options)
    else:
        _refuse("of a recipe, which says it", repo=repo, private=private, tag=tag)
        publication = _publish_recipe(target, folder, accepted, options)
    report(publication, dry_run=dry_run, as_json=as_json)


def _refuse(of_what: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is no option {of_what}", f"leave --{option} out")


def _publish_folder(
    folder: Path, repo: str | None, private: bool | None, tag: str | None, options: PublishOptions
) -> Publication:
    from mconv.release.gatekeeping import require_finished, unaccepted_gates
    from mconv.release.publish.publish import publish_folder

    if repo is None:
        raise UsageError(f"{folder} is a folder, and says nothing of a repository", "give --repo ORG/NAME")
    require_finished(folder)
    failed = unaccepted_gates(folder)
    if failed:
        raise ValidationError(
            f"{folder}: {failed[0]['file']}: {failed[0]['gate']} fails: {failed[0]['what']}",
            "publish it by its recipe, with --accept-failed-gates REASON",
        )
    return publish_folder(folder, repo, private=private is not False, tag=tag, options=options)


def _publish_recipe(recipe: Path, folder: Path | None, accepted: str | None, options: PublishOptions) -> Publication:
    if options.dry_run:
        work = looking(recipe, folder, None)
        fail_on_gates(work.require_checked(), accepted)
        return publish(work, accepted, options)
    with working(recipe, folder, None) as work:
        fail_on_gates(work.require_checked(), accepted)
        work.check(accepted)
    # Publishing locks the folder for itself.
    return publish(work, accepted, options)


def repository_of(project: Project) -> str:
    """Where the release of a recipe goes.

    Raises:
        UsageError: the recipe does not say it.
    """
    if project.recipe.repository is None:
        raise UsageError(f"{project.path.name} names no repository", "add repository = 'ORGANIZATION/NAME'")
    return project.recipe.repository


def publish(work: Release, accepted: str | None, options: PublishOptions) -> Publication:
    """Publish a release that is finished.

    Raises:
        UsageError: the recipe names no repository, or the release is not finished.
        PublishError: see `publish_folder`.
    """
    from mconv.release.publish.publish import publish_folder

    recipe = work.project.recipe
    return publish_folder(
        work.ledger.folder,
        repository_of(work.project),
        private=recipe.private,
        tag=recipe.tag,
        options=options,
        expected=work.files(accepted),
    )


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
