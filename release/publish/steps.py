"""The steps of a publication. Each can be repeated: it first checks whether it is already done."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.errors import PublishError
from mconv.convert.hub.errors import refused
from mconv.convert.reporting import format_bytes, note
from mconv.release.publish.plan import MAIN, PublishPlan
from mconv.release.publish.remote import Remote, mark, wrong_files
from mconv.release.publish.survey import moved

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_WEIGHTS = (".gguf", ".safetensors")
_OTHER_TOKEN = "use a token that may write and take part in discussions, or give --no-pr to commit straight to main"
# Files that the Hub stores in git are smaller.
_LARGE = 10_000_000


class Steps:
    """The steps of one plan."""

    def __init__(self, plan: PublishPlan, folder: Path, remote: Remote) -> None:
        self._plan = plan
        self._folder = folder
        self._remote = remote
        self._title = f"Release {plan.tag}" if plan.tag else "Release"
        self._additions: dict[str, CommitOperationAdd] = {}

    def open_request(self, user: str) -> int:
        """Open the pull request of the plan, or find it; returns its number."""

        def action() -> int:
            # It may already be open if the response to an earlier request was lost.
            found = self._remote.open_requests(user)
            for number, plan in found.items():
                if plan == self._plan.id:
                    return number
            description = (
                "Files of a release. mrelease merges this once it has verified the size and the sum of each.\n\n"
                + mark(self._plan.id)
            )
            with refused(f"{self._plan.repo}: no pull request can be opened", _OTHER_TOKEN, 403):
                return self._remote.api.create_pull_request(self._plan.repo, self._title, description=description).num

        return self._remote.persist(action)

    def upload_to_request(self, number: int) -> None:
        """Commit the missing files to a pull request, small files at once, then the weights one by one; then verify.

        Raises:
            PublishError: a file on the Hub differs from the local one.
        """
        ref = f"refs/pr/{number}"
        small = [name for name in self._plan.missing if not self._is_weight(name)]
        if small or self._plan.deleted:
            self._commit(small, ref, delete=self._plan.deleted)
        for name in self._plan.missing:
            if self._is_weight(name):
                self._commit([name], ref)
        self.verify(ref, f"pull request {number}")

    def upload_to_main(self, parent: str) -> str:
        """Commit the missing files to main in a single commit, on top of the commit in the plan.

        Returns:
            the new commit of main.

        Raises:
            PublishError: main has moved.
        """
        for name in self._plan.missing:
            if self._is_weight(name):
                self._remote.persist(partial(self._send, [name], MAIN))
        return self._commit(list(self._plan.missing), MAIN, parent, self._plan.deleted)

    def verify(self, revision: str, where: str) -> None:
        """Compare size and checksum of every file with the listing of a revision.

        Raises:
            PublishError: a file differs.
        """
        self._remote.persist(partial(self._compare, revision, where))

    def merge(self, number: int, parent: str) -> str:
        """Merge a pull request into main, if main has not moved; return the merge commit.

        Raises:
            PublishError: main has moved, or the account may not merge.
        """

        def action() -> str:
            request = self._remote.request(number)
            if request.status != "merged":
                head = self._remote.head(MAIN)
                if head != parent:
                    raise moved(self._plan.repo, parent, head)
                what = f"{self._plan.repo}: pull request {number} is whole and verified, but cannot be merged"
                hint = f"have it merged at {request.url}, and run the same command again: it goes on from there"
                # Merging is not allowed, or conflicts with changes on main.
                with refused(what, hint, 403, 409):
                    if request.status == "draft":
                        self._remote.api.change_discussion_status(self._plan.repo, number, "open")
                    self._remote.api.merge_pull_request(self._plan.repo, number)
                request = self._remote.request(number)
            return request.merge_commit_oid or self._remote.head(MAIN)

        return self._remote.persist(action)

    def tag(self, name: str, commit: str) -> None:
        """Tag a commit.

        Raises:
            PublishError: another commit has the tag.
        """

        def action() -> None:
            if name in self._remote.tags():
                self._compare(name, f"tag {name}")
            else:
                self._remote.api.create_tag(self._plan.repo, tag=name, revision=commit)

        self._remote.persist(action)

    def _compare(self, revision: str, where: str) -> None:
        listing = self._remote.listing(revision)
        wrong = wrong_files(listing, self._plan.files, self._folder)
        wrong |= {name: "is still there" for name in self._plan.deleted if name in listing}
        if wrong:
            name, difference = next(iter(wrong.items()))
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise PublishError(
                f"{self._plan.repo}: {name} in {where} {difference}{more}",
                "nothing more was done: run the same command again, and tell the Hub if the sum stays wrong",
            )

    def _is_weight(self, name: str) -> bool:
        return name.endswith(_WEIGHTS) or self._plan.files[name].size > _LARGE

    def _commit(
        self, names: Sequence[str], revision: str, parent: str | None = None, delete: Sequence[str] = ()
    ) -> str:
        """Commit files to a revision, which must be at `parent` if given; return the commit."""
        from huggingface_hub import CommitOperationDelete

        def action() -> str:
            head = self._remote.head(revision)
            listing = self._remote.listing(head)
            # The commit may have been made even if the response was lost.
            files = {name: self._plan.files[name] for name in names}
            left = list(wrong_files(listing, files, self._folder))
            gone = [CommitOperationDelete(name, is_folder=False) for name in delete if name in listing]
            if not left and not gone:
                return head
            if parent is not None and head != parent:
                raise moved(self._plan.repo, parent, head)
            additions = self._send(left, revision)
            made = self._remote.api.create_commit(
                self._plan.repo,
                [*additions, *gone],
                commit_message=f"{self._title}: {names[0]}" if len(names) == 1 else self._title,
                commit_description=mark(self._plan.id),
                revision=revision,
                parent_commit=head,
            )
            return made.oid

        return self._remote.persist(action)

    def _send(self, names: Sequence[str], revision: str) -> list[CommitOperationAdd]:
        """Upload the content of large files before committing them; content that the Hub already has is not sent."""
        additions = [self._addition(name) for name in names]
        self._remote.api.preupload_lfs_files(self._plan.repo, additions, revision=revision)
        for name, addition in zip(names, additions, strict=True):
            # huggingface_hub computed this checksum from the bytes that it sent.
            if addition.upload_info.sha256.hex() != self._plan.files[name].sha256:
                raise PublishError(f"{name} changed while it was published", "build the release again")
        return additions

    def _addition(self, name: str) -> CommitOperationAdd:
        """One object per file for all attempts: it keeps its checksum, and whether its content was sent."""
        from huggingface_hub import CommitOperationAdd

        if name not in self._additions:
            size = format_bytes(self._plan.files[name].size)
            note(f"uploading {name} ({size})")
            self._additions[name] = CommitOperationAdd(path_in_repo=name, path_or_fileobj=self._folder / name)
        return self._additions[name]
