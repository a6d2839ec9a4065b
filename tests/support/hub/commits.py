"""Commits through the API: how a file is to be sent, and the commit itself."""

from __future__ import annotations

import base64
import json
from typing import Any

from support.hub.routing import REPO, REVISION, Reply, Request, json_reply, route
from support.hub.storage import MAIN, Refusal, Repository

_LFS_SUFFIXES = (".gguf", ".safetensors", ".png")
_LARGEST_REGULAR = 10_000_000


@route("POST", f"/api/models/{REPO}/preupload/{REVISION}")
def preupload(request: Request, repo: str, revision: str) -> Reply:
    """Whether a file goes into git or to LFS, and what the revision has in its place."""
    request.signed_in()
    repository = request.readable(repo)
    tree = request.hub.storage.read_commit(repo, repository.commit_of(revision))["tree"]
    files = []
    for file in request.json()["files"]:
        large = file["size"] > _LARGEST_REGULAR or file["path"].endswith(_LFS_SUFFIXES)
        entry = tree.get(file["path"])
        files.append(
            {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                "oid": entry and entry.get("lfs", entry["oid"]),
            }
        )
    return json_reply({"files": files})


@route("POST", f"/api/models/{REPO}/commit/{REVISION}")
def commit(request: Request, repo: str, revision: str) -> Reply:
    """A commit on a branch or on the branch of a pull request."""
    author = request.writable(repo)
    lines = [json.loads(line) for line in request.content().splitlines() if line]
    header = lines[0]["value"]
    storage = request.hub.storage
    with storage.change(repo) as repository:
        ref = _writable_ref(repository, revision)
        head = repository.refs[ref]
        if header.get("parentCommit") not in (None, head):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(storage.read_commit(repo, head)["tree"])
        for line in lines[1:]:
            _apply(request, tree, line["key"], line["value"])
        new = storage.commit(repo, (head,), tree, header["summary"], message=header["description"], author=author)
        repository.refs[ref] = new
    return json_reply({"success": True, "commitOid": new, "commitUrl": f"{request.hub.endpoint}/{repo}/commit/{new}"})


def _writable_ref(repository: Repository, revision: str) -> str:
    ref = MAIN if revision == "main" else revision
    if ref not in repository.refs or ref.startswith("refs/tags/"):
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    for discussion in repository.discussions:
        if ref == f"refs/pr/{discussion['num']}" and discussion["status"] in ("merged", "closed"):
            raise Refusal(403, "This pull request is closed")
    return ref


def _apply(request: Request, tree: dict[str, Any], key: str, value: dict[str, Any]) -> None:
    storage = request.hub.storage
    if key == "file":
        tree[value["path"]] = storage.add_blob(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        tree[value["path"]] = storage.lfs_entry(value["oid"], value["size"])
    elif key == "deletedFile":
        del tree[value["path"]]
    else:
        raise Refusal(400, f"unknown operation {key}")
