"""Git LFS: which objects are wanted, uploads in one piece or in parts, the check at the end.

Formats: git-lfs docs/api/batch.md, and the multipart transfer of huggingface_hub `lfs.py`.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid

from support.hub.routing import REPO, Reply, Request, json_reply, route
from support.hub.storage import Refusal


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def batch(request: Request, repo: str) -> Reply:
    """Where to send each object; nothing for one that is there."""
    request.writable(repo)
    hub = request.hub
    objects = []
    for wanted in request.json()["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        found: dict[str, object] = {"oid": oid, "size": size}
        if not hub.storage.object_path(oid).is_file():
            found["actions"] = {"upload": _upload(request, oid, size), "verify": {"href": f"{hub.endpoint}/lfs/verify"}}
        objects.append(found)
    return json_reply({"transfer": "multipart", "objects": objects})


def _upload(request: Request, oid: str, size: int) -> dict[str, object]:
    hub = request.hub
    upload = f"{oid}-{uuid.uuid4().hex}"
    base = f"{hub.storage_endpoint}/lfs/{upload}"
    if size <= hub.part_size:
        return {"href": f"{base}/whole?signature=secret"}
    parts = range(1, -(-size // hub.part_size) + 1)
    header = {"chunk_size": str(hub.part_size), **{f"{part:05d}": f"{base}/{part}?signature=secret" for part in parts}}
    return {"href": f"{hub.endpoint}/lfs/{upload}/complete", "header": header}


@route("PUT", "/lfs/(?P<upload>[^/]+)/(?P<part>[^/]+)")
def put(request: Request, upload: str, part: str) -> Reply:
    """One part, or the whole. Only the signature of the address counts here: no token may come along."""
    if request.query.get("signature") != "secret" or "Authorization" in request.headers:
        raise Refusal(403, "the signature does not match")
    folder = request.hub.storage.root / "uploads" / upload
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{part}.{uuid.uuid4().hex}"
    digest = hashlib.md5()
    with partial.open("wb") as file:
        for piece in request.body:
            digest.update(piece)
            file.write(piece)
    partial.replace(folder / part)
    if part == "whole":
        _keep(request, upload, ["whole"])
    return Reply(headers={"ETag": f'"{digest.hexdigest()}"'})


@route("POST", "/lfs/(?P<upload>[^/]+)/complete")
def complete(request: Request, upload: str) -> Reply:
    """The end of an upload in parts."""
    _keep(request, upload, [str(part["partNumber"]) for part in request.json()["parts"]])
    return json_reply({"ok": True})


@route("POST", "/lfs/verify")
def verify(request: Request) -> Reply:
    """Whether an object has arrived with its size."""
    wanted = request.json()
    path = request.hub.storage.object_path(wanted["oid"])
    if not path.is_file() or path.stat().st_size != wanted["size"]:
        raise Refusal(422, "the object is missing or has another size")
    return json_reply({"ok": True})


def _keep(request: Request, upload: str, parts: list[str]) -> None:
    """Put the parts together. The store trusts the name it was given: what was corrupted on the way stays so."""
    folder = request.hub.storage.root / "uploads" / upload
    whole = folder / "assembled"
    with whole.open("wb") as target:
        for part in parts:
            with (folder / part).open("rb") as source:
                shutil.copyfileobj(source, target)
    whole.replace(request.hub.storage.object_path(upload.split("-")[0]))
    shutil.rmtree(folder)
