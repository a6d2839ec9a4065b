"""Publishing what cannot be helped, or must not be."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.hub.client import Client, Ended
from support.hub.faults import Fault
from support.hub.server import OWNER, OWNER_TOKEN, STRANGER_TOKEN, Hub
from support.publications import CARD, IMPATIENT, PUBLISH, STATE, assert_published, build, refused


@pytest.mark.parametrize("straight", [(), ("--no-pr",)])
def test_a_branch_that_moves_under_it(hub: Hub, machine: Client, release: Path, straight: tuple[str, ...]) -> None:
    repo = f"rosa/moving-{len(straight)}"
    hub.faults.add(Fault("PUT ", "call", action=lambda: hub.storage.push(repo, "other", b"theirs")))
    refused(machine.run(IMPATIENT, release, repo, "--tag", "v1", *straight), "main moved from", "/commits/main")
    # Not by itself the next time either.
    refused(machine.run(IMPATIENT, release, repo, "--tag", "v1", *straight), "main moved from", f"delete {STATE}")
    assert set(hub.storage.files(repo)) == {".gitattributes", "other"}
    (release / STATE).unlink()
    assert machine.run(IMPATIENT, release, repo, "--tag", "v1", *straight).code == 0
    assert_published(hub, repo, release, requests=0 if straight else 1)
    assert hub.storage.files(repo)["other"] == b"theirs"


def test_a_branch_that_moves_while_it_is_committed_to(hub: Hub, machine: Client, release: Path) -> None:
    push = Fault("POST .*/commit/", "call", action=lambda: hub.storage.push("rosa/race", "other", b"theirs"))
    hub.faults.add(push)
    refused(machine.run(IMPATIENT, release, "rosa/race", "--no-pr"), "somebody else committed to the branch")
    assert set(hub.storage.files("rosa/race")) == {".gitattributes", "other"}


@pytest.mark.parametrize("part", ["whole", "2"])
def test_a_wrong_sum_over_there(hub: Hub, machine: Client, release: Path, part: str) -> None:
    repo = f"rosa/corrupt-{part}"
    hub.faults.add(Fault(f"PUT .*/{part}$", "corrupt"))
    name = "tiny-Q4_K_M.gguf" if part == "whole" else "tiny-Q8_0.gguf"
    refused(machine.run(IMPATIENT, release, repo), f"{name} in pull request 1 has SHA-256", "nothing more")
    assert [one["status"] for one in hub.storage.load(repo).discussions] == ["draft"]
    assert set(hub.storage.files(repo)) == {".gitattributes"}


def test_a_public_repository_for_what_is_private(hub: Hub, machine: Client, release: Path) -> None:
    hub.storage.create("rosa/public")
    refused(machine.run(IMPATIENT, release, "rosa/public"), "rosa/public is public", "--public")
    assert hub.writes() == []


def test_a_tag_that_is_taken(hub: Hub, machine: Client, release: Path) -> None:
    hub.storage.create("rosa/tagged", private=True)
    with hub.storage.change("rosa/tagged") as repository:
        repository.refs["refs/tags/v1"] = repository.refs["refs/heads/main"]
    refused(machine.run(IMPATIENT, release, "rosa/tagged", "--tag", "v1"), "tag v1 names another commit")
    assert hub.writes() == []


def test_a_second_plan_while_one_is_open(hub: Hub, machine: Client, release: Path) -> None:
    hub.faults.add(Fault("POST .*/merge$", "status", times=4))
    refused(machine.run(IMPATIENT, release, "rosa/two"), "503")
    build(release, CARD + "Better.\n")
    refused(machine.run(IMPATIENT, release, "rosa/two"), "pull request 1 of other content is still open", "/1")
    with hub.storage.change("rosa/two") as repository:
        repository.discussions[0]["status"] = "closed"
    assert machine.run(IMPATIENT, release, "rosa/two").code == 0
    assert [one["status"] for one in hub.storage.load("rosa/two").discussions] == ["closed", "merged"]


def test_a_pull_request_that_was_closed(hub: Hub, machine: Client, release: Path) -> None:
    hub.faults.add(Fault("POST .*/merge$", "status", times=4))
    refused(machine.run(IMPATIENT, release, "rosa/closed"), "503")
    with hub.storage.change("rosa/closed") as repository:
        repository.discussions[0]["status"] = "closed"
    refused(machine.run(IMPATIENT, release, "rosa/closed"), "pull request 1 was closed", "discussions/1")


def test_a_pull_request_of_a_stranger_is_not_taken_for_ours(hub: Hub, machine: Client, release: Path) -> None:
    hub.faults.add(Fault("POST .*/merge$", "status", times=4))
    refused(machine.run(IMPATIENT, release, "rosa/planted"), "503")
    (release / STATE).unlink()
    with hub.storage.change("rosa/planted") as repository:
        repository.discussions[0]["author"] = "otto"
    assert machine.run(IMPATIENT, release, "rosa/planted").code == 0
    found = [(one["author"], one["status"]) for one in hub.storage.load("rosa/planted").discussions]
    assert found == [("otto", "open"), (OWNER, "merged")]


def test_who_may_not(hub: Hub, machine: Client, release: Path) -> None:
    stranger = machine.run(IMPATIENT, release, "rosa/mine", variables={"HF_TOKEN": STRANGER_TOKEN})
    refused(stranger, "the Hub answered 403", "use a token with the necessary permissions for rosa/mine")
    expired = machine.run(IMPATIENT, release, "rosa/mine", variables={"HF_TOKEN": "hf_expired0123456789"})
    refused(expired, "the Hub answered 401", "the token is invalid")
    assert "hf_expired" not in expired.err
    assert "trying again" not in stranger.err + expired.err
    assert [seen.path for seen in hub.writes()] == ["/api/repos/create"]


def test_an_answer_that_repeats_the_token(hub: Hub, machine: Client, release: Path) -> None:
    headers = {"X-Error-Message": f"Bearer {OWNER_TOKEN} may not, see {hub.storage_endpoint}/x?signature=secret"}
    hub.faults.add(Fault("POST .*/commit/", "status", status=403, headers=headers))
    refused(machine.run(IMPATIENT, release, "rosa/echo"), "Bearer *** may not", "/x)")


def test_two_runs_at_a_time(hub: Hub, machine: Client, release: Path, tmp_path: Path) -> None:
    other = Client(hub, tmp_path / "other")
    second: list[Ended] = []
    run = Fault("PUT ", "call", action=lambda: second.append(other.run(IMPATIENT, release, "rosa/both")))
    hub.faults.add(run)
    first = machine.run(PUBLISH, release, "--repo", "rosa/both")
    other.close()
    assert first.code == 0, first.err
    refused(second[0], "is being published by another run")
    assert_published(hub, "rosa/both", release, tag=None)


def test_a_card_that_the_hub_does_not_read(hub: Hub, machine: Client, tmp_path: Path) -> None:
    release = build(tmp_path / "release", "---\nlicense: [\n---\nA release.\n")
    refused(machine.run(IMPATIENT, release, "rosa/card"), "README.md: the Hub cannot read its metadata", "---")
    assert [seen.path for seen in hub.writes()] == ["/api/repos/create", "/api/validate-yaml"]


def test_a_folder_that_is_not_whole(hub: Hub, machine: Client, release: Path) -> None:
    (release / ".hidden").write_text("left out")
    (release / "notes.txt").write_text("by accident")
    refused(machine.run(IMPATIENT, release, "rosa/unlisted"), "notes.txt is not listed in SHA256SUMS")
    (release / "notes.txt").unlink()
    (release / "passwords").symlink_to("/etc/passwd")
    refused(machine.run(IMPATIENT, release, "rosa/unlisted"), "passwords is a link")
    (release / "passwords").unlink()
    (release / "LICENSE").write_text("other terms")
    refused(machine.run(IMPATIENT, release, "rosa/unlisted"), "LICENSE is not what SHA256SUMS says")
    (release / "LICENSE").unlink()
    refused(machine.run(IMPATIENT, release, "rosa/unlisted"), "LICENSE is missing")
    (release / "SHA256SUMS").write_text("md5?\n")
    refused(machine.run(IMPATIENT, release, "rosa/unlisted"), "line 1 is not a checksum and a name", code=3)
    refused(machine.run(IMPATIENT, release, "unlisted"), "no organization", code=2)
    refused(machine.run(IMPATIENT, release, "a--b/c"), "is not a valid repository name", code=2)
    refused(machine.run(IMPATIENT, release / "none", "rosa/unlisted"), "no such folder", code=2)
    assert hub.seen == []


def test_a_state_that_nobody_wrote(hub: Hub, machine: Client, release: Path) -> None:
    (release / STATE).write_text('{"schema_version": 1, "repo": 3}')
    refused(machine.run(IMPATIENT, release, "rosa/state"), f"{STATE} is not what this version writes", code=3)
    assert hub.seen == []


def test_who_may_open_but_not_merge(hub: Hub, machine: Client, release: Path) -> None:
    hub.faults.add(Fault("POST .*/merge$", "status", status=403))
    ended = machine.run(IMPATIENT, release, "rosa/theirs", "--tag", "v1")
    refused(ended, "pull request 1 is whole and verified, but cannot be merged", "/rosa/theirs/discussions/1")
    assert machine.run(IMPATIENT, release, "rosa/theirs", "--tag", "v1").code == 0
    assert_published(hub, "rosa/theirs", release)


def test_who_may_write_but_not_open(hub: Hub, machine: Client, release: Path) -> None:
    hub.faults.add(Fault("POST .*/discussions$", "status", status=403))
    refused(machine.run(IMPATIENT, release, "rosa/quiet"), "rosa/quiet: no pull request can be opened", "--no-pr")


def test_offline(hub: Hub, release: Path, tmp_path: Path) -> None:
    offline = Client(hub, tmp_path / "offline", variables={"HF_HUB_OFFLINE": "1"})
    ended = offline.run(PUBLISH, release, "--repo", "rosa/offline")
    offline.close()
    refused(ended, "HF_HUB_OFFLINE disables access to the Hub", "unset it")


def test_a_repository_without_pull_requests(hub: Hub, machine: Client, release: Path) -> None:
    hub.storage.create("rosa/silent", private=True)
    hub.faults.add(Fault("GET .*/discussions$", "status", times=2, status=403))
    refused(machine.run(IMPATIENT, release, "rosa/silent"), "rosa/silent does not accept pull requests", "--no-pr")
    assert machine.run(IMPATIENT, release, "rosa/silent", "--no-pr", "--tag", "v1").code == 0
    assert_published(hub, "rosa/silent", release, requests=0)


@pytest.mark.parametrize("tag", ["v 1", "-v1", "a..b", "v1.lock", ""])
def test_a_tag_that_cannot_be(hub: Hub, machine: Client, release: Path, tag: str) -> None:
    refused(machine.run(IMPATIENT, release, "rosa/tag", f"--tag={tag}"), "is not a valid tag name", code=2)
    assert hub.seen == []
