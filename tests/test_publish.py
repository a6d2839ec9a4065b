"""Publishing to a Hub on loopback with the real huggingface_hub: the way it goes, what goes wrong, and being killed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub.client import Client, Ended
from hub.faults import Fault, Kind
from hub.server import OWNER, OWNER_TOKEN, STRANGER_TOKEN, Hub

from convert.errors import PublishError
from release.files import FileDigest, read_folder, read_sums

PUBLISH = "release.commands.publish:command"
# The same with short waits.
IMPATIENT = "hub.impatient:command"
STATE = "publish-state.json"
WEIGHTS = {"tiny-Q4_K_M.gguf": 100_000, "tiny-Q8_0.gguf": 600_000}
CARD = "---\nlicense: apache-2.0\nbase_model: rosa/tiny\n---\nA release.\n"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub for all tests of this file; each has repositories of its own."""
    server = Hub(tmp_path_factory.mktemp("hub"))
    yield server
    server.stop()


@pytest.fixture
def hub(started: Hub) -> Hub:
    """The same, as if nobody had been there."""
    started.seen.clear()
    started.faults.clear()
    # It keeps one copy of an object for all repositories; here they are to be sent anew.
    for path in (started.storage.root / "objects").iterdir():
        path.unlink()
    return started


@pytest.fixture(scope="module")
def machine(started: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The machine that publishes."""
    client = Client(started, tmp_path_factory.mktemp("machine"))
    yield client
    client.close()


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release folder with two files of weights: one is sent whole, one in three parts."""
    return build(tmp_path / "release")


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


@pytest.fixture(autouse=True)
def _no_token_is_written(tmp_path: Path) -> Iterator[None]:
    """The state has no token in it, whatever happened. What is printed is looked at by `Client`."""
    yield
    assert not [path for path in tmp_path.rglob(STATE) if OWNER_TOKEN in path.read_text()]


class TestTheFolder:
    """What is published, before anybody is asked."""

    def test_sums_are_taken_or_made(self, release: Path) -> None:
        made = {
            name: FileDigest(len(data), hashlib.sha256(data).hexdigest()) for name, data in content(release).items()
        }
        assert read_folder(release) == made
        assert list(read_folder(release)) == sorted(made, key=lambda name: (made[name].size, name))
        # A file that is older than the sums is not read: bytes that change behind everyone's back stay unseen here, and
        # are found when they are sent.
        os.utime(release / "LICENSE", ns=(0, 0))
        lines = (release / "SHA256SUMS").read_text().replace(made["LICENSE"].sha256, "0" * 64)
        (release / "SHA256SUMS").write_text(lines)
        assert read_folder(release)["LICENSE"] == FileDigest(120, "0" * 64)
        (release / "SHA256SUMS").unlink()
        assert read_folder(release) == {name: made[name] for name in made if name != "SHA256SUMS"}

    def test_what_is_expected_has_to_be_there(self, release: Path) -> None:
        digest = read_folder(release)["LICENSE"]
        assert read_folder(release, {"LICENSE": digest})
        with pytest.raises(PublishError, match="LICENSE is not what was built"):
            read_folder(release, {"LICENSE": FileDigest(digest.size, "0" * 64)})
        with pytest.raises(PublishError, match=r"other\.gguf is missing"):
            read_folder(release, {"other.gguf": digest})

    def test_sums_in_the_forms_of_coreutils(self, tmp_path: Path) -> None:
        (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  a b\n{'1' * 64} *./c\n")
        assert read_sums(tmp_path / "SHA256SUMS") == {"a b": "0" * 64, "c": "1" * 64}


class TestTheWayItGoes:
    """Nothing fails."""

    def test_a_release_goes_through_a_pull_request(self, hub: Hub, machine: Client, release: Path) -> None:
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

    def test_a_second_run_changes_nothing(self, hub: Hub, machine: Client, release: Path) -> None:
        arguments = (PUBLISH, release, "--repo", "rosa/again", "--tag", "v1")
        assert machine.run(*arguments).code == 0
        hub.seen.clear()
        assert machine.run(*arguments).code == 0
        assert hub.writes() == []
        (release / STATE).unlink()
        assert machine.run(*arguments).code == 0
        assert hub.writes() == []
        assert_published(hub, "rosa/again", release)

    def test_an_update_sends_what_changed(self, hub: Hub, machine: Client, release: Path) -> None:
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

    def test_straight_to_main_is_one_commit(self, hub: Hub, machine: Client, release: Path) -> None:
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

    def test_a_dry_run_changes_nothing(self, hub: Hub, machine: Client, release: Path) -> None:
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

    def test_a_dry_run_needs_neither_network_nor_token(self, hub: Hub, release: Path, tmp_path: Path) -> None:
        offline = Client(hub, tmp_path / "offline", token=None, variables={"HF_HUB_OFFLINE": "1"})
        ended = offline.run(PUBLISH, release, "--repo", "rosa/dry", "--dry-run", "--json")
        real = offline.run(PUBLISH, release, "--repo", "rosa/dry")
        offline.close()
        assert (ended.code, hub.seen) == (0, [])
        assert "what rosa/dry has is not known" in ended.err
        assert json.loads(ended.out)["exists"] is None
        refused(real, "not signed in", "hf auth login")


SURVIVED = {
    "an error on the way to the commit": Fault("POST .*/preupload/", "status", status=500),
    "an error instead of a commit": Fault("POST .*/commit/", "status", times=2, status=503),
    "an error instead of a merge": Fault("POST .*/merge$", "status", status=502),
    "an error while verifying": Fault("GET .*/tree/refs", "status", status=504),
    "a part that breaks off": Fault("PUT .*/2$", "drop"),
    "a commit that breaks off": Fault("POST .*/commit/", "drop"),
    "the answer to creating is lost": Fault("POST /api/repos/create", "lost"),
    "the answer to opening is lost": Fault("POST .*/discussions$", "lost"),
    "the answer to the first commit is lost": Fault("POST .*/commit/", "lost"),
    "the answer to the last commit is lost": Fault("POST .*/commit/", "lost", after=2),
    "the answer to the merge is lost": Fault("POST .*/merge$", "lost"),
    "the answer to the tag is lost": Fault("POST .*/tag/", "lost"),
    "the end of an upload is silent for too long": Fault("POST .*/merge$", "call", action=lambda: time.sleep(2.5)),
    "a slow link": Fault("PUT ", "slow", times=4, rate=1_000_000),
}


class TestWhatPasses:
    """It fails once or twice, and is tried again."""

    @pytest.mark.parametrize("name", SURVIVED)
    def test_it_is_survived(self, hub: Hub, machine: Client, release: Path, name: str) -> None:
        repo = f"rosa/survived-{list(SURVIVED).index(name)}"
        hub.faults.add(fault := SURVIVED[name])
        ended = machine.run(IMPATIENT, release, repo, "--tag", "v1")
        assert ended.code == 0, ended.err
        assert fault.times == 0
        assert_published(hub, repo, release)

    def test_the_answer_to_the_only_commit_is_lost(self, hub: Hub, machine: Client, release: Path) -> None:
        hub.faults.add(Fault("POST .*/commit/", "lost"))
        ended = machine.run(IMPATIENT, release, "rosa/once", "--tag", "v1", "--no-pr")
        assert ended.code == 0, ended.err
        assert_published(hub, "rosa/once", release, requests=0)
        assert len(hub.storage.history("rosa/once", hub.storage.load("rosa/once").commit_of("main"))) == 2

    def test_as_long_as_the_hub_asks_is_waited(self, hub: Hub, machine: Client, release: Path) -> None:
        hub.faults.add(Fault("POST .*/merge$", "status", status=429, headers={"Retry-After": "1"}))
        began = time.monotonic()
        ended = machine.run(IMPATIENT, release, "rosa/hurry", "--tag", "v1")
        assert ended.code == 0, ended.err
        assert time.monotonic() - began > 1
        assert "trying again in 1.0 s" in ended.err
        assert_published(hub, "rosa/hurry", release)

    def test_longer_than_is_bearable_is_not_waited(self, hub: Hub, machine: Client, release: Path) -> None:
        hub.faults.add(Fault("POST .*/merge$", "status", status=429, headers={"Retry-After": "3600"}))
        refused(machine.run(IMPATIENT, release, "rosa/limit"), "429", "it goes on where it stopped")

    def test_what_does_not_pass_is_given_up_and_taken_up_again(self, hub: Hub, machine: Client, release: Path) -> None:
        hub.faults.add(Fault("POST .*/merge$", "status", times=4, status=500))
        ended = machine.run(IMPATIENT, release, "rosa/down", "--tag", "v1")
        refused(ended, "the Hub answered 500", "it goes on")
        assert ended.err.count("trying again") == 3
        hub.seen.clear()
        assert machine.run(IMPATIENT, release, "rosa/down", "--tag", "v1").code == 0
        assert not [seen for seen in hub.seen if "/commit/" in seen.path]
        assert_published(hub, "rosa/down", release)

    def test_an_error_of_ours_is_not_tried_again(self, hub: Hub, machine: Client, release: Path) -> None:
        hub.faults.add(Fault("POST .*/commit/", "status", status=422))
        ended = machine.run(IMPATIENT, release, "rosa/unprocessable")
        refused(ended, "the Hub answered 422")
        assert "trying again" not in ended.err


class TestWhatIsRefused:
    """It cannot be helped, or must not be."""

    @pytest.mark.parametrize("straight", [(), ("--no-pr",)])
    def test_a_branch_that_moves_under_it(
        self, hub: Hub, machine: Client, release: Path, straight: tuple[str, ...]
    ) -> None:
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

    def test_a_branch_that_moves_while_it_is_committed_to(self, hub: Hub, machine: Client, release: Path) -> None:
        push = Fault("POST .*/commit/", "call", action=lambda: hub.storage.push("rosa/race", "other", b"theirs"))
        hub.faults.add(push)
        refused(machine.run(IMPATIENT, release, "rosa/race", "--no-pr"), "moved while it was committed to")
        assert set(hub.storage.files("rosa/race")) == {".gitattributes", "other"}

    @pytest.mark.parametrize("part", ["whole", "2"])
    def test_a_wrong_sum_over_there(self, hub: Hub, machine: Client, release: Path, part: str) -> None:
        repo = f"rosa/corrupt-{part}"
        hub.faults.add(Fault(f"PUT .*/{part}$", "corrupt"))
        name = "tiny-Q4_K_M.gguf" if part == "whole" else "tiny-Q8_0.gguf"
        refused(machine.run(IMPATIENT, release, repo), f"{name} in pull request 1 has SHA-256", "nothing more")
        assert [one["status"] for one in hub.storage.load(repo).discussions] == ["draft"]
        assert set(hub.storage.files(repo)) == {".gitattributes"}

    def test_a_public_repository_for_what_is_private(self, hub: Hub, machine: Client, release: Path) -> None:
        hub.storage.create("rosa/public")
        refused(machine.run(IMPATIENT, release, "rosa/public"), "rosa/public is public", "--public")
        assert hub.writes() == []

    def test_a_tag_that_is_taken(self, hub: Hub, machine: Client, release: Path) -> None:
        hub.storage.create("rosa/tagged", private=True)
        with hub.storage.change("rosa/tagged") as repository:
            repository.refs["refs/tags/v1"] = repository.refs["refs/heads/main"]
        refused(machine.run(IMPATIENT, release, "rosa/tagged", "--tag", "v1"), "tag v1 names another commit")
        assert hub.writes() == []

    def test_a_second_plan_while_one_is_open(self, hub: Hub, machine: Client, release: Path) -> None:
        hub.faults.add(Fault("POST .*/merge$", "status", times=4))
        refused(machine.run(IMPATIENT, release, "rosa/two"), "503")
        build(release, CARD + "Better.\n")
        refused(machine.run(IMPATIENT, release, "rosa/two"), "pull request 1 of other content is still open", "/1")
        with hub.storage.change("rosa/two") as repository:
            repository.discussions[0]["status"] = "closed"
        assert machine.run(IMPATIENT, release, "rosa/two").code == 0
        assert [one["status"] for one in hub.storage.load("rosa/two").discussions] == ["closed", "merged"]

    def test_a_pull_request_that_was_closed(self, hub: Hub, machine: Client, release: Path) -> None:
        hub.faults.add(Fault("POST .*/merge$", "status", times=4))
        refused(machine.run(IMPATIENT, release, "rosa/closed"), "503")
        with hub.storage.change("rosa/closed") as repository:
            repository.discussions[0]["status"] = "closed"
        refused(machine.run(IMPATIENT, release, "rosa/closed"), "pull request 1 was closed", "discussions/1")

    def test_a_pull_request_of_a_stranger_is_not_taken_for_ours(self, hub: Hub, machine: Client, release: Path) -> None:
        hub.faults.add(Fault("POST .*/merge$", "status", times=4))
        refused(machine.run(IMPATIENT, release, "rosa/planted"), "503")
        (release / STATE).unlink()
        with hub.storage.change("rosa/planted") as repository:
            repository.discussions[0]["author"] = "otto"
        assert machine.run(IMPATIENT, release, "rosa/planted").code == 0
        found = [(one["author"], one["status"]) for one in hub.storage.load("rosa/planted").discussions]
        assert found == [("otto", "open"), (OWNER, "merged")]

    def test_who_may_not(self, hub: Hub, machine: Client, release: Path) -> None:
        stranger = machine.run(IMPATIENT, release, "rosa/mine", variables={"HF_TOKEN": STRANGER_TOKEN})
        refused(stranger, "the Hub answered 403", "use a token that may do this to rosa/mine")
        expired = machine.run(IMPATIENT, release, "rosa/mine", variables={"HF_TOKEN": "hf_expired0123456789"})
        refused(expired, "the Hub answered 401", "the token is not valid")
        assert "hf_expired" not in expired.err
        assert "trying again" not in stranger.err + expired.err
        assert [seen.path for seen in hub.writes()] == ["/api/repos/create"]

    def test_an_answer_that_repeats_the_token(self, hub: Hub, machine: Client, release: Path) -> None:
        headers = {"X-Error-Message": f"Bearer {OWNER_TOKEN} may not, see {hub.storage_endpoint}/x?signature=secret"}
        hub.faults.add(Fault("POST .*/commit/", "status", status=403, headers=headers))
        refused(machine.run(IMPATIENT, release, "rosa/echo"), "Bearer *** may not", "/x)")

    def test_two_runs_at_a_time(self, hub: Hub, machine: Client, release: Path, tmp_path: Path) -> None:
        other = Client(hub, tmp_path / "other")
        second: list[Ended] = []
        run = Fault("PUT ", "call", action=lambda: second.append(other.run(IMPATIENT, release, "rosa/both")))
        hub.faults.add(run)
        first = machine.run(PUBLISH, release, "--repo", "rosa/both")
        other.close()
        assert first.code == 0, first.err
        refused(second[0], "is being published by another run")
        assert_published(hub, "rosa/both", release, tag=None)

    def test_a_card_that_the_hub_does_not_read(self, hub: Hub, machine: Client, tmp_path: Path) -> None:
        release = build(tmp_path / "release", "---\nlicense: [\n---\nA release.\n")
        refused(machine.run(IMPATIENT, release, "rosa/card"), "README.md: the Hub cannot read its metadata", "---")
        assert not [seen for seen in hub.seen if seen.path.startswith("/lfs/")]

    def test_a_folder_that_is_not_whole(self, hub: Hub, machine: Client, release: Path) -> None:
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
        refused(machine.run(IMPATIENT, release, "rosa/unlisted"), "line 1 is no sum and name", code=3)
        refused(machine.run(IMPATIENT, release, "unlisted"), "no organization", code=2)
        refused(machine.run(IMPATIENT, release, "a--b/c"), "no name of a repository", code=2)
        refused(machine.run(IMPATIENT, release / "none", "rosa/unlisted"), "no such folder", code=2)
        assert hub.seen == []

    def test_a_state_that_nobody_wrote(self, hub: Hub, machine: Client, release: Path) -> None:
        (release / STATE).write_text('{"schema_version": 1, "repo": 3}')
        refused(machine.run(IMPATIENT, release, "rosa/state"), f"{STATE} is not what this version writes", code=3)
        assert hub.seen == []


@pytest.fixture(scope="module")
def requests_in_all(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many requests an undisturbed publication makes."""
    folder = tmp_path_factory.mktemp("counted")
    server = Hub(folder / "hub")
    client = Client(server, folder / "home")
    ended = client.run(IMPATIENT, build(folder / "release"), "rosa/counted", "--tag", "v1")
    client.close()
    server.stop()
    assert ended.code == 0, ended.err
    return len(server.seen)


class TestKilled:
    """The process is gone without a word, and the same command is given again."""

    @pytest.mark.parametrize("point", range(20))
    def test_at_any_point(self, hub: Hub, machine: Client, release: Path, requests_in_all: int, point: int) -> None:
        """Spread over all requests; in turn in the middle of one, and between its being done and its answer."""
        repo = f"rosa/killed-{point}"
        kind: Kind = "call-after" if point % 2 else "drop"
        hub.faults.add(Fault("", kind, after=point * requests_in_all // 20, action=machine.kill))
        assert machine.run(IMPATIENT, release, repo, "--tag", "v1").code == -9
        ended = machine.run(IMPATIENT, release, repo, "--tag", "v1")
        assert ended.code == 0, ended.err
        assert_published(hub, repo, release)

    @pytest.mark.parametrize(
        ("route", "kind", "sent_again"),
        [
            (r"POST .*/discussions$", "call-after", list(WEIGHTS)),
            (r"PUT .*/2$", "drop", ["tiny-Q8_0.gguf"]),
            (r"POST .*/complete$", "call-after", []),
            (r"POST .*/merge$", "call-after", []),
            (r"POST .*/tag/", "call-after", []),
        ],
    )
    def test_what_has_arrived_whole_is_not_sent_again(
        self, hub: Hub, machine: Client, release: Path, route: str, kind: Kind, sent_again: list[str]
    ) -> None:
        repo = f"rosa/hurt-{hashlib.sha256(route.encode()).hexdigest()[:8]}"
        hub.faults.add(Fault(route, kind, action=machine.kill))
        assert machine.run(IMPATIENT, release, repo, "--tag", "v1").code == -9
        hub.seen.clear()
        assert machine.run(IMPATIENT, release, repo, "--tag", "v1").code == 0
        assert_published(hub, repo, release)
        assert sum(seen.size for seen in hub.seen if seen.method == "PUT") == sum(map(WEIGHTS.__getitem__, sent_again))

    def test_the_tag_names_what_was_merged(self, hub: Hub, machine: Client, release: Path) -> None:
        """Whatever others have done to main since."""
        hub.faults.add(Fault("POST .*/tag/", "drop", action=machine.kill))
        assert machine.run(IMPATIENT, release, "rosa/later", "--tag", "v1").code == -9
        merged = hub.storage.load("rosa/later").commit_of("main")
        hub.storage.push("rosa/later", "README.md", b"a better card")
        ended = machine.run(IMPATIENT, release, "rosa/later", "--tag", "v1")
        assert ended.code == 0, ended.err
        repository = hub.storage.load("rosa/later")
        assert repository.commit_of("v1") == merged
        assert hub.storage.files("rosa/later")["README.md"] == b"a better card"
        assert len(repository.discussions) == 1

    def test_again_and_again(self, release: Path, tmp_path: Path) -> None:
        """Eight times in a row, at random, on a Hub that is itself restarted in between."""
        hub = Hub(tmp_path / "hub")
        client = Client(hub, tmp_path / "home")
        chance = random.Random(6)
        for _ in range(8):
            hub.faults.add(Fault("", "call-after", after=chance.randrange(4, 24), action=client.kill))
            assert client.run(IMPATIENT, release, "rosa/worn", "--tag", "v1").code in (-9, 0)
            port = hub.port
            hub.stop()
            hub = Hub(tmp_path / "hub", port)
        ended = client.run(IMPATIENT, release, "rosa/worn", "--tag", "v1")
        client.close()
        hub.stop()
        assert ended.code == 0, ended.err
        assert_published(hub, "rosa/worn", release)

    def test_straight_to_main_it_is_all_or_nothing(self, hub: Hub, machine: Client, release: Path) -> None:
        hub.faults.add(Fault("PUT .*/2$", "drop", action=machine.kill))
        assert machine.run(IMPATIENT, release, "rosa/atomic", "--no-pr", "--tag", "v1").code == -9
        assert set(hub.storage.files("rosa/atomic")) == {".gitattributes"}
        hub.seen.clear()
        hub.faults.add(Fault("POST .*/commit/", "call-after", action=machine.kill))
        assert machine.run(IMPATIENT, release, "rosa/atomic", "--no-pr", "--tag", "v1").code == -9
        # The smaller file of weights had arrived the first time.
        assert sum(seen.size for seen in hub.seen if seen.method == "PUT") == WEIGHTS["tiny-Q8_0.gguf"]
        assert machine.run(IMPATIENT, release, "rosa/atomic", "--no-pr", "--tag", "v1").code == 0
        assert_published(hub, "rosa/atomic", release, requests=0)
