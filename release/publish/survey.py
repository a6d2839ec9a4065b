"""Compare a folder with the Hub and plan the remaining steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.errors import PublishError
from mconv.convert.hub.errors import refused
from mconv.release.files import STATE
from mconv.release.publish.plan import MAIN, PublishPlan
from mconv.release.publish.remote import Remote, wrong_files
from mconv.release.publish.state import PublishState

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_STRAIGHT = "switch them on in its settings, or give --no-pr to commit straight to main"


def survey(
    wanted: PublishPlan, folder: Path, remote: Remote, user: str | None, state: PublishState | None
) -> PublishPlan:
    """The plan, completed with the state of the Hub. Changes nothing.

    Args:
        wanted: the plan without the state of the Hub.
        folder: the folder of its files.
        user: the account whose pull requests to look for; None to skip them.
        state: the state of an earlier run.

    Raises:
        PublishError: the repository is public but must not be, main has moved since an earlier run, the tag names
            another commit, or a pull request of other content is open.
    """
    info = remote.info()
    if info is None:
        return replace(wanted, exists=False)
    if wanted.private and not info.private:
        raise PublishError(
            f"{wanted.repo} is public, but the release is private",
            "make the repository private in its settings, or publish with --public",
        )
    # A finished publication leaves nothing to continue.
    ours = state if state and (state.repo, state.plan, state.commit) == (wanted.repo, wanted.id, None) else None
    number = _request_number(wanted, remote, user, ours)
    listing = remote.listing(str(info.sha))
    # The Hub creates and maintains this file.
    others = tuple(sorted(listing.keys() - wanted.files.keys() - {".gitattributes"}))
    wrong = wrong_files(listing, wanted.files, folder)
    whole = not wrong and not (wanted.delete_others and others)
    merged = whole or (number is not None and _is_merged(remote, number))
    if merged:
        # Main had all files, even if it changed later.
        wrong = {}
    else:
        _check_parent(wanted, info, ours)
        if number is not None:
            wrong = wrong_files(remote.listing(f"refs/pr/{number}"), wanted.files, folder)
    return replace(
        wanted,
        exists=True,
        parent=info.sha,
        number=number,
        present=frozenset(wanted.files.keys() - wrong.keys()),
        others=others,
        merged=merged,
        tagged=_is_tagged(wanted, folder, remote, merged),
    )


def _request_number(wanted: PublishPlan, remote: Remote, user: str | None, ours: PublishState | None) -> int | None:
    """The pull request of this plan.

    Raises:
        PublishError: one of another plan is open, or this plan's was closed.
    """
    found = _open_requests(wanted, remote, user) if user else {}
    others = [number for number, plan in found.items() if plan != wanted.id]
    if others:
        url = remote.request(others[0]).url
        raise PublishError(
            f"{wanted.repo}: pull request {others[0]} of other content is still open",
            f"merge it or close it first: {url}",
        )
    if not wanted.pull_request:
        return None
    return ours.pull_request if ours and ours.pull_request else next(iter(found), None)


def _open_requests(wanted: PublishPlan, remote: Remote, user: str) -> dict[int, str]:
    """The open pull requests of this account.

    Raises:
        PublishError: the repository does not support pull requests, but the plan needs one.
    """
    try:
        # An account that can see a repository can see its pull requests, unless they are disabled.
        with refused(f"{wanted.repo} does not accept pull requests", _STRAIGHT, 403):
            return remote.open_requests(user)
    except PublishError:
        if wanted.pull_request:
            raise
        return {}


def _is_merged(remote: Remote, number: int) -> bool:
    request = remote.request(number)
    if request.status == "closed":
        raise PublishError(
            f"{remote.repo}: pull request {number} was closed",
            f"open it again at {request.url}, or delete {STATE} to begin with a new one",
        )
    return request.status == "merged"


def _check_parent(wanted: PublishPlan, info: ModelInfo, ours: PublishState | None) -> None:
    if ours is not None and ours.parent != info.sha:
        raise moved(wanted.repo, ours.parent, str(info.sha))


def moved(repo: str, before: str, now: str) -> PublishError:
    """The error for a commit to main during the publication."""
    from huggingface_hub import constants

    return PublishError(
        f"{repo}: {MAIN} moved from {before[:12]} to {now[:12]} since the publication began",
        f"look at {constants.ENDPOINT}/{repo}/commits/{MAIN}; to publish on top of it, delete {STATE} "
        "and run the same command again",
    )


def _is_tagged(wanted: PublishPlan, folder: Path, remote: Remote, merged: bool) -> bool:
    if wanted.tag is None or wanted.tag not in remote.tags():
        return False
    if not merged or wrong_files(remote.listing(wanted.tag), wanted.files, folder):
        raise PublishError(f"{wanted.repo}: tag {wanted.tag} names another commit", "choose another tag")
    return True
