"""Publish a release folder: upload to a pull request, verify, merge, verify again, tag.

Every step may be interrupted at any point. The next run finds out from the Hub and a small state file what is done, and
continues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.errors import PublishError
from mconv.convert.hub.client import hub_client
from mconv.convert.hub.errors import explain, reason
from mconv.convert.hub.patience import Patience
from mconv.convert.reporting import note
from mconv.release.files import CARD, STATE, FileDigest, read_folder
from mconv.release.hub_names import check_repository, check_tag
from mconv.release.publish.plan import MAIN, PublishPlan
from mconv.release.publish.remote import Remote
from mconv.release.publish.state import PublishState, exclusive, load_state
from mconv.release.publish.steps import Steps
from mconv.release.publish.survey import survey

if TYPE_CHECKING:
    from mconv.release.release import Release

_PATIENCE = Patience()
_NONE = Patience(attempts=1)


@dataclass(frozen=True)
class PublishOptions:
    """Options of a publication.

    Attributes:
        pull_request: publish through a pull request; otherwise with a single commit to main.
        delete_others: delete other files of the repository, except .gitattributes; otherwise they are kept.
        dry_run: compare with the Hub, if it can be reached, and change nothing.
    """

    pull_request: bool = True
    delete_others: bool = False
    dry_run: bool = False


_DEFAULT_OPTIONS = PublishOptions()


@dataclass(frozen=True)
class Publication:
    """What a run did, or, in a dry run, would do.

    Attributes:
        plan: what remained to be done at the start.
        url: the address of the repository.
        pull_request: the number of the pull request, if there is one.
        commit: the published commit of main; None in a dry run.
    """

    plan: PublishPlan
    url: str
    pull_request: int | None = None
    commit: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The members of the plan and the result."""
        return {**self.plan.to_json(), "url": self.url, "pull_request": self.pull_request, "commit": self.commit}


def publish_folder(
    folder: Path,
    repo: str,
    *,
    private: bool,
    tag: str | None = None,
    options: PublishOptions = _DEFAULT_OPTIONS,
    expected: Mapping[str, FileDigest] | None = None,
    patience: Patience = _PATIENCE,
) -> Publication:
    """Publish the files of a folder to a repository on the Hub.

    Args:
        folder: a release; all files in it are published, except hidden files and state files.
        repo: `ORGANIZATION/NAME`; created if it does not exist.
        private: create a new repository as private, and never publish to an existing public one.
        tag: a tag for the published commit.
        options: see `PublishOptions`.
        expected: sizes and checksums that the files must have.
        patience: how often and how long to retry after a failure.

    Raises:
        UsageError: the folder is not a release, or the name of the repository or of the tag is not valid.
        PublishError: the Hub refused, could not be reached, or has wrong files; or the folder is incomplete.
        DiskError: the state could not be written.
    """
    check_repository(repo)
    if tag is not None:
        check_tag(tag)
    files = read_folder(folder, expected)
    plan = PublishPlan(repo, files, private, options.pull_request, tag, options.delete_others)
    with hub_client(patience):
        try:
            if options.dry_run:
                return _look(plan, folder)
            with exclusive(folder):
                return _publish(plan, folder, Remote(repo, patience))
        except Exception as error:
            raise explain(error, repo) from error


def publish_release(release: Release, accepted: str | None, options: PublishOptions) -> Publication:
    """Publish a finished release to the repository in its recipe.

    Args:
        accepted: the reason for accepting failed gates; the same as when it was finished.

    Raises:
        UsageError: the recipe names no repository, or the release is not finished.
        PublishError: see `publish_folder`.
    """
    recipe = release.project.recipe
    return publish_folder(
        release.ledger.folder,
        release.project.require_repository(),
        private=recipe.private,
        tag=recipe.tag,
        options=options,
        expected=release.files(accepted),
    )


def _look(plan: PublishPlan, folder: Path) -> Publication:
    """The plan for a dry run; without the state of the Hub if it cannot be reached."""
    import httpx2
    from huggingface_hub import get_token

    remote = Remote(plan.repo, _NONE)
    state = load_state(folder / STATE)
    signed_in = get_token() is not None
    try:
        plan = survey(plan, folder, remote, remote.user() if signed_in else None, state)
    except (httpx2.HTTPError, ConnectionError) as error:
        note(f"the content of {plan.repo} is unknown: {reason(error)}")
    if plan.exists is False and not signed_in:
        note(f"the content of {plan.repo} is unknown: not signed in, and no public repository has this name")
        plan = replace(plan, exists=None)
    return Publication(plan, _url(plan.repo), plan.number)


def _publish(plan: PublishPlan, folder: Path, remote: Remote) -> Publication:
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode() and get_token():
        raise PublishError("HF_HUB_OFFLINE disables access to the Hub", "unset it, or use --dry-run")
    state_path = folder / STATE
    state = load_state(state_path)
    user = remote.persist(remote.user)
    begun = plan = remote.persist(lambda: survey(plan, folder, remote, user, state))
    if not plan.exists:
        remote.persist(lambda: remote.api.create_repo(plan.repo, private=plan.private, exist_ok=True))
        plan = remote.persist(lambda: survey(plan, folder, remote, user, state))
    if plan.parent is None:
        raise PublishError(f"{plan.repo}: the Hub did not return the commit of {MAIN}", "run the same command again")
    _look_ahead(plan, folder, remote)
    steps = Steps(plan, folder, remote)
    state = PublishState(plan.repo, plan.id, plan.parent, plan.number)
    state.save(state_path)
    if plan.pull_request and not (plan.merged and plan.number is None):
        number = plan.number or steps.open_request(user)
        state = replace(state, pull_request=number)
        state.save(state_path)
        if not plan.merged:
            steps.upload_to_request(number)
        commit = steps.merge(number, state.parent)
    else:
        commit = plan.parent if plan.merged else steps.upload_to_main(plan.parent)
    steps.verify(commit, MAIN)
    if plan.tag and not plan.tagged:
        steps.tag(plan.tag, commit)
    replace(state, commit=commit).save(state_path)
    return Publication(begun, _url(plan.repo), state.pull_request, commit)


def _look_ahead(plan: PublishPlan, folder: Path, remote: Remote) -> None:
    """Check for problems before opening a pull request and uploading gigabytes."""
    if plan.others and not plan.delete_others and not plan.merged:
        names = ", ".join(plan.others[:5]) + (", ..." if len(plan.others) > 5 else "")
        note(f"{plan.repo} has other files too, which stay (--delete-others removes them): {names}")
    if CARD in plan.missing:
        remote.persist(lambda: remote.check_card((folder / CARD).read_text("utf-8")))


def _url(repo: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"
