"""Publishing when nothing fails."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from support.hub.client import Client
from support.hub.server import Hub
from support.publications import CARD, PUBLISH, STATE, assert_published, build, content, refused, write_sums


def test_a_release_goes_through_a_pull_request(hub: Hub, machine: Client, release: Path) -> None:
    ended = machine.run(PUBLISH, release, "--repo", "rosa/new", "--tag", "v1")
    assert ended.code == 0, ended.err
    assert_published(hub, "rosa/new", release)
    repository = hub.storage.load("rosa/new")
    assert repository.private
    assert list(repository.refs) == ["refs/heads/main", "refs/pr/1", "refs/tags/v1"]
    # Small files first, then the weights one by one, in commits of the pull request; one commit on main.
    commits = [commit["tree"].keys() for _, commit in hub.storage.history("rosa/new", repository.refs["refs/pr/1"])]
    steps = [sorted(now - before) for now, before in itertools.pairwise(commits)]
    small = ["LICENSE", "README.md", "SHA256SUMS", "plots/size.svg"]
    assert steps[::-1] == [small, ["tiny-Q4_K_M.gguf"], ["tiny-Q8_0.gguf"]]
    main = hub.storage.history("rosa/new", repository.refs["refs/heads/main"])
    assert [commit["title"] for _, commit in main] == ["Release v1 (#1)", "initial commit"]
    # Each file was verified on the pull request and on main.
    listed = [seen.path.rsplit("/", 1)[1] for seen in hub.seen if "/tree/" in seen.path]
    assert "refs%2Fpr%2F1" in listed
    assert listed[-1] == repository.refs["refs/heads/main"]
    assert ended.out.splitlines()[-1] == (
        f"published 6 files to {hub.endpoint}/rosa/new at commit {repository.commit_of('v1')}"
    )
    state = json.loads((release / STATE).read_text())
    assert (state["pull_request"], state["commit"]) == (1, repository.commit_of("main"))


def test_a_second_run_changes_nothing(hub: Hub, machine: Client, release: Path) -> None:
    arguments = (PUBLISH, release, "--repo", "rosa/again", "--tag", "v1")
    assert machine.run(*arguments).code == 0
    hub.seen.clear()
    assert machine.run(*arguments).code == 0
    assert hub.writes() == []
    (release / STATE).unlink()
    assert machine.run(*arguments).code == 0
    assert hub.writes() == []
    assert_published(hub, "rosa/again", release)


def test_an_update_sends_what_changed(hub: Hub, machine: Client, release: Path) -> None:
    assert machine.run(PUBLISH, release, "--repo", "rosa/update", "--tag", "v1").code == 0
    hub.storage.push("rosa/update", "notes.txt", b"somebody's")
    build(release, CARD + "Better.\n")
    hub.seen.clear()
    assert machine.run(PUBLISH, release, "--repo", "rosa/update", "--tag", "v2").code == 0
    assert not [seen for seen in hub.seen if seen.path.startswith("/lfs/")]
    assert_published(hub, "rosa/update", release, "v2", requests=2)
    assert hub.storage.files("rosa/update")["notes.txt"] == b"somebody's"
    # An earlier release keeps its name and its bytes.
    assert hub.storage.files("rosa/update", "v1")["README.md"] == CARD.encode()


def test_straight_to_main_is_one_commit(hub: Hub, machine: Client, release: Path) -> None:
    arguments = (PUBLISH, release, "--repo", "rosa/straight", "--tag", "v1", "--no-pr", "--public", "--json")
    ended = machine.run(*arguments)
    assert ended.code == 0, ended.err
    assert_published(hub, "rosa/straight", release, requests=0)
    repository = hub.storage.load("rosa/straight")
    assert not repository.private
    main = hub.storage.history("rosa/straight", repository.refs["refs/heads/main"])
    assert [commit["title"] for _, commit in main] == ["Release v1", "initial commit"]
    members = json.loads(ended.out)
    assert (members["schema_version"], members["commit"]) == (1, repository.refs["refs/heads/main"])
    assert [one["operation"] for one in members["operations"]] == ["create", *["upload"] * 6, "verify", "tag"]


def test_a_dry_run_changes_nothing(hub: Hub, machine: Client, release: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in release.rglob("*")}
    hub.storage.create("rosa/dry", private=True)
    hub.storage.push("rosa/dry", "LICENSE", (release / "LICENSE").read_bytes())
    ended = machine.run(PUBLISH, release, "--repo", "rosa/dry", "--tag", "v1", "--dry-run")
    assert ended.code == 0, ended.err
    assert hub.writes() == []
    assert {path: path.stat().st_mtime_ns for path in release.rglob("*")} == before
    rows = [line.split()[:2] for line in ended.out.splitlines() if line and not line.startswith("would")]
    verbs = {subject: verb for verb, subject in rows[1:]}
    assert verbs["LICENSE"] == "keep"
    assert {verbs[name] for name in content(release).keys() - {"LICENSE"}} == {"upload"}
    assert [verb for verb, _ in rows[1:] if verb not in ("upload", "keep")] == [
        "open", "verify", "merge", "verify", "tag",
    ]  # fmt: skip


def test_a_dry_run_needs_neither_network_nor_token(hub: Hub, release: Path, tmp_path: Path) -> None:
    offline = Client(hub, tmp_path / "offline", token=None, variables={"HF_HUB_OFFLINE": "1"})
    ended = offline.run(PUBLISH, release, "--repo", "rosa/dry", "--dry-run", "--json")
    real = offline.run(PUBLISH, release, "--repo", "rosa/dry")
    offline.close()
    assert (ended.code, hub.seen) == (0, [])
    assert "the content of rosa/dry is unknown" in ended.err
    assert "***" not in ended.err
    assert json.loads(ended.out)["exists"] is None
    refused(real, "not signed in", "hf auth login")


def test_what_is_there_besides_is_told_or_deleted(hub: Hub, machine: Client, release: Path) -> None:
    assert machine.run(PUBLISH, release, "--repo", "rosa/besides", "--tag", "v1").code == 0
    (release / "tiny-Q8_0.gguf").unlink()
    (release / "LICENSE").write_text("other terms")
    write_sums(release)
    ended = machine.run(PUBLISH, release, "--repo", "rosa/besides", "--tag", "v2")
    assert ended.code == 0, ended.err
    assert "rosa/besides has other files too, which stay (--delete-others removes them): tiny-Q8_0.gguf" in ended.err
    assert "tiny-Q8_0.gguf" in hub.storage.files("rosa/besides")
    deleting = (PUBLISH, release, "--repo", "rosa/besides", "--tag", "v3", "--delete-others")
    hub.seen.clear()
    ended = machine.run(*deleting, "--dry-run", "--json")
    operations = [(one["operation"], one["subject"]) for one in json.loads(ended.out)["operations"]]
    assert (("delete", "tiny-Q8_0.gguf") in operations, hub.writes()) == (True, [])
    assert machine.run(*deleting).code == 0
    assert_published(hub, "rosa/besides", release, "v3", requests=3)
    assert hub.storage.files("rosa/besides").keys() == content(release).keys() | {".gitattributes"}
    hub.storage.push("rosa/besides", "notes.txt", b"somebody's")
    ended = machine.run(*deleting, "--no-pr")
    assert ended.code == 5 and "tag v3 names another commit" in ended.err
    ended = machine.run(PUBLISH, release, "--repo", "rosa/besides", "--delete-others", "--no-pr")
    assert ended.code == 0, ended.err
    assert hub.storage.files("rosa/besides").keys() == content(release).keys() | {".gitattributes"}


def test_a_dry_run_without_a_token_does_not_know_what_is_private(hub: Hub, release: Path, tmp_path: Path) -> None:
    hub.storage.create("rosa/hidden", private=True)
    stranger = Client(hub, tmp_path / "stranger", token=None)
    ended = stranger.run(PUBLISH, release, "--repo", "rosa/hidden", "--dry-run")
    stranger.close()
    assert ended.code == 0
    assert "the content of rosa/hidden is unknown: not signed in" in ended.err
    assert "repository rosa/hidden, unless it exists" in ended.out
