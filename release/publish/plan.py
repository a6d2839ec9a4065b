"""The plan of a publication: a value that prints, compares, serialises and has a hash."""

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
    """One thing to do on the Hub.

    Attributes:
        verb: create, open, upload, keep, leave, delete, verify, merge or tag.
        subject: a file, a repository, a pull request, a tag.
        digest: of a file.
    """

    verb: str
    subject: str
    digest: FileDigest | None = None


@dataclass(frozen=True)
class PublishPlan:
    """What the repository is to hold, and what it holds.

    Attributes:
        repo: `ORGANIZATION/NAME`.
        files: everything to be published, by path, smallest first.
        private: whether a repository that has to be created is private.
        pull_request: whether the files go through a pull request.
        tag: the name that the published commit gets, if any.
        delete_others: whether what the repository has besides is deleted.
        exists: whether the repository is there; None if the Hub was not asked.
        parent: the commit that main is at, where it is known.
        number: of the pull request that an earlier run opened.
        present: the files that the target has with the right sum.
        others: the paths that main has besides.
        merged: whether main has them all, or had them when the pull request was merged.
        tagged: whether the tag is there.
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
        """A hash of what is to be published and where, in hexadecimal; what is there already has no part in it."""
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
        """What has to be uploaded, smallest first."""
        return {name: digest for name, digest in self.files.items() if name not in self.present}

    @property
    def deleted(self) -> tuple[str, ...]:
        """What has to go."""
        return self.others if self.delete_others and not self.merged else ()

    def operations(self) -> Iterator[Operation]:
        """Everything that is left to do, in its order."""
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
