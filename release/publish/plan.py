"""The plan of a publication: a value that can be printed, compared, serialised and hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mconv.release.files import FileDigest

MAIN = "main"


@dataclass(frozen=True)
class Operation:
    """One operation on the Hub.

    Attributes:
        verb: create, open, upload, keep, leave, delete, verify, merge or tag.
        subject: a file, a repository, a pull request, a tag.
        digest: size and hash, for a file.
    """

    verb: str
    subject: str
    digest: FileDigest | None = None


@dataclass(frozen=True)
class PublishPlan:
    """The wanted and the current content of a repository.

    Attributes:
        repo: `ORGANIZATION/NAME`.
        files: all files to publish, by path, smallest first.
        private: whether a repository that has to be created is private.
        pull_request: whether to publish through a pull request.
        tag: the tag of the published commit, if any.
        delete_others: whether to delete other files of the repository.
        exists: whether the repository exists; None if the Hub was not asked.
        parent: the current commit of main, if known.
        number: the number of the pull request that an earlier run opened.
        present: the files that the target already has with the correct checksum.
        others: the paths of other files on main.
        merged: whether main has all files, or had them when the pull request was merged.
        tagged: whether the tag exists.
    """

    repo: str
    files: Mapping[str, FileDigest]
    private: bool
    pull_request: bool
    tag: str | None
    delete_others: bool = False
    exists: bool | None = None
    parent: str | None = None
    number: int | None = None
    present: frozenset[str] = frozenset()
    others: tuple[str, ...] = ()
    merged: bool = False
    tagged: bool = False

    @property
    def id(self) -> str:
        """A hash of the files to publish and their target, in hexadecimal; independent of the current content."""
        content = {
            "repo": self.repo,
            "pull_request": self.pull_request,
            "tag": self.tag,
            "delete_others": self.delete_others,
            "files": {name: [digest.size, digest.sha256] for name, digest in sorted(self.files.items())},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def missing(self) -> dict[str, FileDigest]:
        """The files to upload, smallest first."""
        return {name: digest for name, digest in self.files.items() if name not in self.present}

    @property
    def deleted(self) -> tuple[str, ...]:
        """The files to delete."""
        return self.others if self.delete_others and not self.merged else ()

    def operations(self) -> Iterator[Operation]:
        """The remaining operations, in order."""
        if not self.exists:
            unless = ", unless it exists" if self.exists is None else ""
            yield Operation("create", f"{'private' if self.private else 'public'} repository {self.repo}{unless}")
        through_request = self.pull_request and not self.merged
        target = f"pull request {self.number or '(new)'}" if through_request else MAIN
        if through_request and self.number is None:
            yield Operation("open", target)
        for name, digest in self.files.items():
            yield Operation("keep" if name in self.present else "upload", name, digest)
        for name in self.others:
            yield Operation("delete" if name in self.deleted else "leave", name)
        yield Operation("verify", target)
        if through_request:
            yield Operation("merge", f"{target} into {MAIN}")
            yield Operation("verify", MAIN)
        if self.tag and not self.tagged:
            yield Operation("tag", self.tag)

    def to_json(self) -> dict[str, Any]:
        """The members of the plan, for JSON."""
        return {
            "repository": self.repo,
            "plan": self.id,
            "exists": self.exists,
            "private": self.private,
            "parent_commit": self.parent,
            "pull_request": self.number,
            "tag": self.tag,
            "upload_bytes": sum(digest.size for digest in self.missing.values()),
            "operations": [
                {
                    "operation": operation.verb,
                    "subject": operation.subject,
                    **({"bytes": digest.size, "sha256": digest.sha256} if (digest := operation.digest) else {}),
                }
                for operation in self.operations()
            ],
        }
