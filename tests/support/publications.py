"""Release folders to be published in the tests, and what is to become of them."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from support.hub.client import Ended
from support.hub.server import Hub

PUBLISH = "mconv.release.commands.publish:command"
# The same with short waits.
IMPATIENT = "support.hub.impatient:command"
STATE = "publish-state.json"
WEIGHTS = {"tiny-Q4_K_M.gguf": 100_000, "tiny-Q8_0.gguf": 600_000}
CARD = "---\nlicense: apache-2.0\nbase_model: rosa/tiny\n---\nA release.\n"


def build(folder: Path, card: str = CARD) -> Path:
    """Write a release folder."""
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(card)
    (folder / "LICENSE").write_text("terms\n" * 20)
    (folder / "plots/size.svg").write_text("<svg/>")
    for name, size in WEIGHTS.items():
        (folder / name).write_bytes(random.Random(name).randbytes(size))
    write_sums(folder)
    return folder


def write_sums(folder: Path) -> None:
    """What sha256sum would print."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ("SHA256SUMS", STATE))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in paths]
    (folder / "SHA256SUMS").write_text("".join(lines))


def content(folder: Path) -> dict[str, bytes]:
    """What of a folder is published."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != STATE]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def assert_published(hub: Hub, repo: str, folder: Path, tag: str | None = "v1", requests: int = 1) -> None:
    """The repository has the right bytes under the tag, and exactly one pull request, merged."""
    repository = hub.storage.load(repo)
    files = hub.storage.files(repo)
    assert {name: files.get(name) for name in content(folder)} == content(folder)
    assert [one["status"] for one in repository.discussions] == ["merged"] * requests
    if tag:
        assert repository.commit_of(tag) == repository.commit_of("main")


def refused(ended: Ended, *words: str, code: int = 5) -> None:
    """It failed with this code and two lines, which have these words."""
    assert ended.code == code, ended
    lines = [line for line in ended.err.splitlines() if not line.startswith("note:")]
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], ended.err
    for word in words:
        assert word in ended.err, ended.err
