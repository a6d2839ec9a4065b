"""Pull requests: open, list, details, status, merge."""

from __future__ import annotations

from typing import Any

from support.hub.routing import REPO, Reply, Request, json_reply, route
from support.hub.storage import MAIN, Refusal, Repository, Storage

_MOMENT = "2026-01-01T00:00:00.000Z"
_NUMBER = r"(?P<number>\d+)"


@route("POST", f"/api/models/{REPO}/discussions")
def open_discussion(request: Request, repo: str) -> Reply:
    """A pull request on a branch of its own, in draft."""
    author = request.signed_in()
    request.readable(repo)
    wanted = request.json()
    with request.hub.storage.change(repo) as repository:
        number = len(repository.discussions) + 1
        repository.discussions.append(
            {
                "num": number,
                "title": wanted["title"],
                "description": wanted["description"],
                "author": author,
                "status": "draft" if wanted["pullRequest"] else "open",
                "is_pull_request": wanted["pullRequest"],
                "base": repository.refs[MAIN],
                "merge_commit": None,
            }
        )
        if wanted["pullRequest"]:
            repository.refs[f"refs/pr/{number}"] = repository.refs[MAIN]
    return json_reply({"num": number, "pullRequest": wanted["pullRequest"]})


@route("GET", f"/api/models/{REPO}/discussions")
def list_discussions(request: Request, repo: str) -> Reply:
    """Newest first, a page at a time."""
    found = [_summary(repo, one) for one in reversed(request.readable(repo).discussions)]
    author, kind = request.query.get("author"), request.query.get("type")
    found = [one for one in found if author in (None, one["author"]["name"])]
    found = [one for one in found if kind in (None, "all") or one["isPullRequest"] == (kind == "pull_request")]
    start = int(request.query.get("p", 0)) * request.hub.page_size
    page = found[start : start + request.hub.page_size]
    return json_reply({"discussions": page, "count": len(found), "start": start})


@route("GET", f"/api/models/{REPO}/discussions/{_NUMBER}")
def details(request: Request, repo: str, number: str) -> Reply:
    """One of them, with what was said."""
    one = _find(request.readable(repo), int(number))
    comment = {
        "id": "0",
        "type": "comment",
        "createdAt": _MOMENT,
        "author": {"name": one["author"]},
        "data": {"edited": False, "hidden": False, "latest": {"raw": one["description"]}},
    }
    changes = {"base": MAIN, **({"mergeCommitId": one["merge_commit"]} if one["merge_commit"] else {})}
    return json_reply(
        {**_summary(repo, one), "events": [comment], "filesWithConflicts": [], "changes": changes, "diff": ""}
    )


@route("POST", f"/api/models/{REPO}/discussions/{_NUMBER}/status")
def set_status(request: Request, repo: str, number: str) -> Reply:
    """Publish, close or open again."""
    author = request.writable(repo)
    with request.hub.storage.change(repo) as repository:
        one = _find(repository, int(number))
        if one["status"] == "merged":
            raise Refusal(400, "The pull request is merged")
        one["status"] = request.json()["status"]
    event = {"id": "1", "type": "status-change", "createdAt": _MOMENT, "author": {"name": author}}
    return json_reply({"newStatus": {**event, "data": {"status": one["status"]}}})


@route("POST", f"/api/models/{REPO}/discussions/{_NUMBER}/merge")
def merge(request: Request, repo: str, number: str) -> Reply:
    """Put what a pull request changes on top of main, as one commit."""
    author = request.writable(repo)
    storage = request.hub.storage
    with storage.change(repo) as repository:
        one = _find(repository, int(number))
        if one["status"] != "open":
            raise Refusal(400, f"This pull request is {one['status']}: it cannot be merged")
        tree = _merged(storage, repository, one)
        title = f"{one['title']} (#{number})"
        repository.refs[MAIN] = storage.commit(repo, (repository.refs[MAIN],), tree, title, author=author)
        one["status"] = "merged"
        one["merge_commit"] = repository.refs[MAIN]
    return json_reply({"ok": True})


def _merged(storage: Storage, repository: Repository, one: dict[str, Any]) -> dict[str, Any]:
    base, theirs, ours = (
        storage.read_commit(repository.name, commit)["tree"]
        for commit in (one["base"], repository.refs[f"refs/pr/{one['num']}"], repository.refs[MAIN])
    )
    changed = {path: entry for path, entry in theirs.items() if base.get(path) != entry}
    if any(ours.get(path) != base.get(path) for path in changed):
        raise Refusal(409, "This pull request has conflicts")
    return {path: entry for path, entry in {**ours, **changed}.items() if path in theirs or path not in base}


def _find(repository: Repository, number: int) -> dict[str, Any]:
    if not 0 < number <= len(repository.discussions):
        raise Refusal(404, "Discussion not found")
    return repository.discussions[number - 1]


def _summary(repo: str, one: dict[str, Any]) -> dict[str, Any]:
    return {
        "num": one["num"],
        "title": one["title"],
        "status": one["status"],
        "author": {"name": one["author"]},
        "createdAt": _MOMENT,
        "isPullRequest": one["is_pull_request"],
        "repo": {"name": repo, "type": "model"},
    }
