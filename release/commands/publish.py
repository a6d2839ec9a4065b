"""mrelease publish."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mconv.convert.errors import UsageError, ValidationError
from mconv.release.commands.options import (
    accept_option,
    delete_option,
    folder_option,
    json_option,
    no_pr_option,
    path_type,
)
from mconv.release.commands.output import fail_on_gates, print_publication

if TYPE_CHECKING:
    from mconv.release.publish.publication import Publication, PublishOptions


@click.command("publish")
@click.argument("target", type=path_type, metavar="RECIPE.toml|FOLDER")
@click.option("--repo", metavar="ORG/NAME", help="For a FOLDER: repository on the Hub; created if it does not exist.")
@click.option(
    "--private/--public", default=None, help="For a FOLDER: visibility of a new repository.  [default: private]"
)
@click.option("--tag", metavar="TAG", help="For a FOLDER: tag of the published commit, such as v1.0.")
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
    """Publish a release to the Hugging Face Hub, and verify the uploaded files.

    Give a recipe whose release is built and checked, or the FOLDER of a release. The files are uploaded to a pull
    request, which is merged once the size and checksum of each file on the Hub are correct. After an interruption, run
    the same command to continue.

    \b
    Examples:
      mrelease publish tiny-mistral.toml --dry-run
      mrelease publish build/tiny-mistral --repo rosa/tiny-mistral-GGUF --public --tag v1.0
    """
    from mconv.release.publish.publication import PublishOptions

    options = PublishOptions(pull_request=not no_pr, delete_others=delete_others, dry_run=dry_run)
    if target.is_dir():
        _refuse("of a FOLDER", folder=folder, accept_failed_gates=accepted)
        publication = _publish_folder(target, repo, private, tag, options)
    else:
        _refuse("of a recipe, which says it", repo=repo, private=private, tag=tag)
        publication = _publish_recipe(target, folder, accepted, options)
    print_publication(publication, dry_run=dry_run, as_json=as_json)


def _refuse(of_what: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is not an option {of_what}", f"leave --{option} out")


def _publish_folder(
    folder: Path, repo: str | None, private: bool | None, tag: str | None, options: PublishOptions
) -> Publication:
    from mconv.release.publish.publication import publish_folder
    from mconv.release.publish.readiness import require_finished, unaccepted_gates

    if repo is None:
        raise UsageError(f"{folder} is a folder, so the repository is unknown", "pass --repo ORG/NAME")
    require_finished(folder)
    failed = unaccepted_gates(folder)
    if failed:
        raise ValidationError(
            f"{folder}: {failed[0]['file']}: {failed[0]['gate']} fails: {failed[0]['what']}",
            "publish with the recipe and --accept-failed-gates REASON",
        )
    return publish_folder(folder, repo, private=private is not False, tag=tag, options=options)


def _publish_recipe(recipe: Path, folder: Path | None, accepted: str | None, options: PublishOptions) -> Publication:
    from mconv.release.publish.publication import publish_release
    from mconv.release.release import open_release, view_release

    if options.dry_run:
        release = view_release(recipe, folder, None)
        fail_on_gates(release.require_checked(), accepted)
        return publish_release(release, accepted, options)
    with open_release(recipe, folder, None) as release:
        fail_on_gates(release.require_checked(), accepted)
        release.check(accepted)
    # Publishing locks the folder itself.
    return publish_release(release, accepted, options)
