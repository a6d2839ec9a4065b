"""Read a repository on the Hub, with retries, without changing it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mconv.convert import __version__
from mconv.convert.hub.patience import Patience, persist
from mconv.release.files import FileDigest, git_blob_id

if TYPE_CHECKING:
    from huggingface_hub import DiscussionWithDetails, ModelInfo, RepoFile

T = TypeVar("T")
_MARK = "Plan: `{}`"
_MARKED = re.compile(re.escape(_MARK).replace(r"\{\}", "([0-9a-f]{64})"))


def mark(plan_id: str) -> str:
    """The line in the description of a pull request by which a later run recognises it."""
    return _MARK.format(plan_id)


class Remote:
    """A model repository on the Hub. Every method sends a new request, once; wrap calls in `persist` to retry them.

    Attributes:
        repo: `ORGANIZATION/NAME`.
        api: the API of huggingface_hub.
        patience: how often and how long to retry each action.
    """

    def __init__(self, repo: str, patience: Patience) -> None:
        from huggingface_hub import HfApi

        self.repo = repo
        self.api = HfApi(library_name="mrelease", library_version=__version__)
        self.patience = patience

    def persist(self, action: Callable[[], T]) -> T:
        """Run an action, with retries."""
        return persist(action, self.patience, self.repo)

    def user(self) -> str:
        """The account that the token belongs to."""
        return str(self.api.whoami()["name"])

    def info(self) -> ModelInfo | None:
        """The repository at main; None if it does not exist or is not visible to this account."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        try:
            return self.api.model_info(self.repo)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None

    def head(self, revision: str) -> str:
        """The commit of a revision."""
        return str(self.api.model_info(self.repo, revision=revision).sha)

    def check_card(self, text: str) -> None:
        """Let the Hub check the metadata of a card, as it does for every commit of a card."""
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        content = {"content": text, "repoType": "model"}
        headers = build_hf_headers()
        answer = get_session().post(f"{constants.ENDPOINT}/api/validate-yaml", json=content, headers=headers)
        hf_raise_for_status(answer)

    def listing(self, revision: str) -> dict[str, RepoFile]:
        """Every file of a revision by its path."""
        from huggingface_hub import RepoFile

        entries = self.api.list_repo_tree(self.repo, recursive=True, revision=revision)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def tags(self) -> dict[str, str]:
        """Every tag and its commit."""
        return {tag.name: tag.target_commit for tag in self.api.list_repo_refs(self.repo).tags}

    def request(self, number: int) -> DiscussionWithDetails:
        """A pull request by its number."""
        return self.api.get_discussion_details(self.repo, number)

    def open_requests(self, user: str) -> dict[int, str]:
        """Number and plan of each open pull request that a run of this account opened, oldest first."""
        # Only those of this account: anyone can open a pull request with the same description.
        found = self.api.get_repo_discussions(self.repo, author=user, discussion_type="pull_request")
        numbers = sorted(one.num for one in found if one.status in ("draft", "open"))
        plans = {number: _plan_of(self.request(number)) for number in numbers}
        return {number: plan for number, plan in plans.items() if plan is not None}


def _plan_of(request: DiscussionWithDetails) -> str | None:
    from huggingface_hub import DiscussionComment

    comments = (event for event in request.events if isinstance(event, DiscussionComment))
    match = _MARKED.search(next((comment.content for comment in comments), ""))
    return match[1] if match else None


def holds(entry: RepoFile | None, digest: FileDigest, path: Path) -> bool:
    """Whether a file on the Hub is the same as the local one.

    Large files are compared by SHA-256; small files, which are stored in git, by their git object id.
    """
    if entry is None:
        return False
    if entry.lfs is not None:
        return (entry.lfs.size, entry.lfs.sha256) == (digest.size, digest.sha256)
    if entry.size != digest.size:
        return False
    content = path.read_bytes()
    return entry.blob_id == git_blob_id(content) and hashlib.sha256(content).hexdigest() == digest.sha256


def wrong_files(listing: Mapping[str, RepoFile], files: Mapping[str, FileDigest], folder: Path) -> dict[str, str]:
    """The differences between a listing and the local files, by name."""
    wrong = {}
    for name, digest in files.items():
        entry = listing.get(name)
        if not holds(entry, digest, folder / name):
            wrong[name] = _difference(entry, digest)
    return wrong


def _difference(entry: RepoFile | None, digest: FileDigest) -> str:
    if entry is None:
        return "is missing"
    if entry.size != digest.size:
        return f"has {entry.size} bytes, not {digest.size}"
    if entry.lfs is None:
        return "has other content"
    return f"has SHA-256 {entry.lfs.sha256}, not {digest.sha256}"
