"""Downloads: the Hub says what a file is and sends LFS objects from another host, with ranges."""

from __future__ import annotations

import re
from urllib.parse import urlencode

from support.hub.routing import REPO, REVISION, Reply, Request, route
from support.hub.storage import Refusal


@route("HEAD", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)")
@route("GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)")
def resolve(request: Request, repo: str, revision: str, path: str) -> Reply:
    """A file, or where it lies."""
    repository = request.readable(repo)
    if repository.gated and request.user not in request.hub.members:
        status = 403 if request.user else 401
        raise Refusal(status, f"Access to model {repo} is restricted. You must have access to it.", "GatedRepo")
    commit_id = repository.commit_of(revision)
    entry = request.hub.storage.read_commit(repo, commit_id)["tree"].get(path)
    if entry is None:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    headers = {"X-Repo-Commit": commit_id, "Accept-Ranges": "bytes"}
    if "lfs" not in entry:
        return _ranged(
            request, Reply(200, request.hub.storage.content_path(entry), {**headers, "ETag": f'"{entry["oid"]}"'})
        )
    headers |= {"X-Linked-Size": str(entry["size"]), "X-Linked-ETag": f'"{entry["lfs"]}"'}
    query = urlencode({"signature": "secret"})
    headers["Location"] = f"{request.hub.storage_endpoint}/cdn/{entry['lfs']}?{query}"
    return Reply(302, b"", headers)


@route("GET", "/cdn/(?P<sha256>[0-9a-f]{64})")
def stored(request: Request, sha256: str) -> Reply:
    """An LFS object. Only the signature of the address counts here: no token may come along."""
    if request.query.get("signature") != "secret" or "Authorization" in request.headers:
        raise Refusal(403, "the signature does not match")
    path = request.hub.storage.object_path(sha256)
    return _ranged(request, Reply(200, path, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"}))


def _ranged(request: Request, reply: Reply) -> Reply:
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not wanted or isinstance(reply.body, bytes):
        return reply
    content = reply.body.read_bytes()
    start, stop = int(wanted[1]), int(wanted[2] or len(content) - 1) + 1
    if start >= len(content):
        raise Refusal(416, "Range not satisfiable")
    part = content[start:stop]
    span = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
    return Reply(206, part, {**reply.headers, "Content-Range": span})
