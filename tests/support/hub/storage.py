"""Repositories on disk: content-addressed files, commits that name them, refs that name commits.

objects/<sha256>                   files kept as LFS objects
blobs/<sha1>                       files kept in git itself
repos/<org>/<name>/repo.json       visibility, refs, discussions
repos/<org>/<name>/commits/<id>.json
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAIN = "refs/heads/main"
_ATTRIBUTES = b"*.gguf filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class Refusal(Exception):
    """An answer that is an error, as the Hub words it: status, X-Error-Code and message."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass
class Repository:
    """What repo.json holds."""

    name: str
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    discussions: list[dict[str, Any]] = field(default_factory=list)

    def commit_of(self, revision: str) -> str:
        """The commit that a branch, tag, pull request or commit id names."""
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.refs[ref]
        if revision in self.refs.values() or len(revision) == 40:
            return revision
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class Storage:
    """All repositories under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        for name in ("objects", "blobs", "uploads", "repos"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def create(self, name: str, *, private: bool = False, gated: bool = False) -> Repository:
        """A repository with its first commit, as the Hub makes one."""
        with self.lock:
            if self._record(name).exists():
                raise Refusal(409, "You already created this model repo")
            repository = Repository(name, private, gated)
            repository.refs[MAIN] = self.commit(
                name, (), {".gitattributes": self.add_blob(_ATTRIBUTES)}, "initial commit", author="system"
            )
            self._save(repository)
            return repository

    def load(self, name: str) -> Repository:
        """What is known of a repository.

        Raises:
            Refusal: there is none.
        """
        with self.lock:
            try:
                return Repository(**json.loads(self._record(name).read_text()))
            except FileNotFoundError:
                raise Refusal(404, "Repository not found", "RepoNotFound") from None

    @contextmanager
    def change(self, name: str) -> Iterator[Repository]:
        """A repository that nobody else changes meanwhile; kept if nothing is raised."""
        with self.lock:
            repository = self.load(name)
            yield repository
            self._save(repository)

    def commit(
        self,
        name: str,
        parents: tuple[str, ...],
        tree: Mapping[str, dict[str, Any]],
        title: str,
        *,
        message: str = "",
        author: str,
    ) -> str:
        """Write a commit; its id is the SHA-1 of its content."""
        record = {
            "parents": list(parents),
            "tree": dict(sorted(tree.items())),
            "title": title,
            "message": message,
            "author": author,
            "date": time.time_ns(),
        }
        text = json.dumps(record, indent=1)
        commit_id = hashlib.sha1(text.encode()).hexdigest()
        _write(self._folder(name) / "commits" / f"{commit_id}.json", text.encode())
        return commit_id

    def read_commit(self, name: str, commit_id: str) -> dict[str, Any]:
        """A commit by its id."""
        try:
            record: dict[str, Any] = json.loads((self._folder(name) / "commits" / f"{commit_id}.json").read_text())
        except FileNotFoundError:
            raise Refusal(404, f"Invalid rev id: {commit_id}", "RevisionNotFound") from None
        return record

    def history(self, name: str, commit_id: str) -> list[tuple[str, dict[str, Any]]]:
        """Commits from one back to the first, by first parent."""
        commits = []
        while commit_id:
            record = self.read_commit(name, commit_id)
            commits.append((commit_id, record))
            commit_id = record["parents"][0] if record["parents"] else ""
        return commits

    def push(self, name: str, path: str, content: bytes) -> str:
        """Somebody else commits a file to main; returns the commit."""
        return self._push(name, {path: self.add_blob(content)})

    def push_folder(self, name: str, folder: Path) -> str:
        """Somebody else commits a whole folder to main, weights as LFS objects; returns the commit."""
        entries = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                large = path.suffix in (".safetensors", ".bin", ".gguf")
                entry = self.add_object(content) if large else self.add_blob(content)
                entries[path.relative_to(folder).as_posix()] = entry
        return self._push(name, entries)

    def add_object(self, content: bytes) -> dict[str, Any]:
        """Keep a file as an LFS object; returns its tree entry."""
        sha256 = hashlib.sha256(content).hexdigest()
        _write(self.object_path(sha256), content)
        return self.lfs_entry(sha256, len(content))

    def add_blob(self, content: bytes) -> dict[str, Any]:
        """Keep a file in git; returns its tree entry."""
        blob_id = git_blob_id(content)
        _write(self.root / "blobs" / blob_id, content)
        return {"oid": blob_id, "size": len(content)}

    def lfs_entry(self, sha256: str, size: int) -> dict[str, Any]:
        """The tree entry of an LFS object that was uploaded before.

        Raises:
            Refusal: it was not.
        """
        if not self.object_path(sha256).is_file():
            raise Refusal(400, f"LFS object {sha256} was not uploaded")
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return {"oid": git_blob_id(pointer), "size": size, "lfs": sha256, "pointer_size": len(pointer)}

    def object_path(self, sha256: str) -> Path:
        """Where an LFS object is or would be."""
        return self.root / "objects" / sha256

    def content_path(self, entry: Mapping[str, Any]) -> Path:
        """The file of a tree entry."""
        return self.object_path(entry["lfs"]) if "lfs" in entry else self.root / "blobs" / entry["oid"]

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Path to content of everything in a revision."""
        tree = self.read_commit(name, self.load(name).commit_of(revision))["tree"]
        return {path: self.content_path(entry).read_bytes() for path, entry in tree.items()}

    def _push(self, name: str, entries: Mapping[str, dict[str, Any]]) -> str:
        with self.change(name) as repository:
            head = repository.refs[MAIN]
            tree = {**self.read_commit(name, head)["tree"], **entries}
            repository.refs[MAIN] = self.commit(name, (head,), tree, f"Add {min(entries)}", author="somebody")
            return repository.refs[MAIN]

    def _folder(self, name: str) -> Path:
        return self.root / "repos" / name

    def _record(self, name: str) -> Path:
        return self._folder(name) / "repo.json"

    def _save(self, repository: Repository) -> None:
        _write(self._record(repository.name), json.dumps(vars(repository), indent=1).encode())


def git_blob_id(content: bytes) -> str:
    """The SHA-1 that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{threading.get_ident()}")
    partial.write_bytes(content)
    partial.replace(path)
