"""Accounts and repositories: who am I, create, information, listing, refs, history, tags, check of a card."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import yaml

from support.hub.routing import REPO, REVISION, Reply, Request, json_reply, route
from support.hub.storage import Refusal


@route("GET", "/api/whoami-v2")
def whoami(request: Request) -> Reply:
    """The account of the token."""
    return json_reply({"type": "user", "name": request.signed_in(), "orgs": [], "auth": {"type": "access_token"}})


@route("POST", "/api/repos/create")
def create(request: Request) -> Reply:
    """A new repository."""
    user = request.signed_in()
    wanted = request.json()
    if user not in request.hub.members:
        raise Refusal(403, "You don't have the rights to create a model under this namespace")
    name = f"{wanted['organization'] or user}/{wanted['name']}"
    url = f"{request.hub.endpoint}/{name}"
    try:
        request.hub.storage.create(name, private=wanted.get("visibility") == "private")
    except Refusal as refusal:
        return json_reply({"error": str(refusal), "url": url}, refusal.status)
    return json_reply({"url": url, "name": name})


@route("POST", "/api/validate-yaml")
def validate_card(request: Request) -> Reply:
    """Whether the head of a README.md is YAML and a table."""
    content = request.json()["content"]
    if not content.startswith("---\n"):
        return json_reply({"warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        head = yaml.safe_load(content.split("---\n")[1])
    except yaml.YAMLError as error:
        return json_reply({"errors": [{"message": str(error)}], "warnings": []}, 400)
    if not isinstance(head, dict):
        return json_reply({"errors": [{"message": "the metadata is no table"}], "warnings": []}, 400)
    return json_reply({"errors": [], "warnings": []})


@route("GET", f"/api/models/{REPO}")
@route("GET", f"/api/models/{REPO}/revision/{REVISION}")
def information(request: Request, repo: str, revision: str = "main") -> Reply:
    """What a model is at a revision."""
    repository = request.readable(repo)
    commit_id = repository.commit_of(revision)
    tree = request.hub.storage.read_commit(repo, commit_id)["tree"]
    blobs = request.query.get("blobs", "").lower() == "true"
    return json_reply(
        {
            "id": repo,
            "sha": commit_id,
            "private": repository.private,
            "gated": "auto" if repository.gated else False,
            "tags": [],
            "siblings": [{"rfilename": path, **(_sibling(entry) if blobs else {})} for path, entry in tree.items()],
        }
    )


def _sibling(entry: dict[str, Any]) -> dict[str, Any]:
    members = {"size": entry["size"], "blobId": entry["oid"]}
    if "lfs" in entry:
        members["lfs"] = {"size": entry["size"], "sha256": entry["lfs"], "pointerSize": entry["pointer_size"]}
    return members


@route("GET", f"/api/models/{REPO}/tree/{REVISION}")
def listing(request: Request, repo: str, revision: str) -> Reply:
    """Files of a revision, a page at a time. Sizes and sums are those of the bytes on disk."""
    repository = request.readable(repo)
    commit_id = repository.commit_of(revision)
    commit = request.hub.storage.read_commit(repo, commit_id)
    expand = request.query.get("expand", "").lower() == "true"
    entries = []
    for path, entry in commit["tree"].items():
        members: dict[str, Any] = {"type": "file", "path": path, "oid": entry["oid"], "size": entry["size"]}
        if "lfs" in entry:
            content = request.hub.storage.content_path(entry).read_bytes()
            members["size"] = len(content)
            members["lfs"] = {
                "oid": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": entry["pointer_size"],
            }
        if expand:
            members["lastCommit"] = {"id": commit_id, "title": commit["title"], "date": _date(commit)}
        entries.append(members)
    start = int(request.query.get("cursor", 0))
    stop = start + request.hub.page_size
    headers = {}
    if stop < len(entries):
        query = urlencode({**request.query, "cursor": stop})
        headers["Link"] = f'<{request.hub.endpoint}{request.path}?{query}>; rel="next"'
    return json_reply(entries[start:stop], headers=headers)


@route("GET", f"/api/models/{REPO}/refs")
def refs(request: Request, repo: str) -> Reply:
    """Branches, tags and pull requests."""
    repository = request.readable(repo)

    def named(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": commit}
            for ref, commit in repository.refs.items()
            if ref.startswith(prefix)
        ]

    found: dict[str, Any] = {"branches": named("refs/heads/"), "converts": [], "tags": named("refs/tags/")}
    if request.query.get("include_prs"):
        found["pullRequests"] = named("refs/pr/")
    return json_reply(found)


@route("GET", f"/api/models/{REPO}/commits/{REVISION}")
def history(request: Request, repo: str, revision: str) -> Reply:
    """Commits, newest first."""
    commits = request.hub.storage.history(repo, request.readable(repo).commit_of(revision))
    return json_reply(
        [
            {
                "id": commit_id,
                "title": commit["title"],
                "message": commit["message"],
                "authors": [{"user": commit["author"]}],
                "date": _date(commit),
            }
            for commit_id, commit in commits
        ]
    )


@route("POST", f"/api/models/{REPO}/tag/{REVISION}")
def tag(request: Request, repo: str, revision: str) -> Reply:
    """A new tag."""
    request.writable(repo)
    name = request.json()["tag"]
    with request.hub.storage.change(repo) as repository:
        if f"refs/tags/{name}" in repository.refs:
            raise Refusal(409, f"Tag {name} already exists")
        repository.refs[f"refs/tags/{name}"] = repository.commit_of(revision)
    return Reply(201)


def _date(commit: dict[str, Any]) -> str:
    moment = datetime.fromtimestamp(commit["date"] / 1e9, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
