"""Publishing when the process is gone without a word, and the same command is given again."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from support.hub.client import Client
from support.hub.faults import Fault, Kind
from support.hub.server import Hub
from support.publications import IMPATIENT, WEIGHTS, assert_published, build


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


@pytest.mark.parametrize("point", range(20))
def test_at_any_point(hub: Hub, machine: Client, release: Path, requests_in_all: int, point: int) -> None:
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
    hub: Hub, machine: Client, release: Path, route: str, kind: Kind, sent_again: list[str]
) -> None:
    repo = f"rosa/hurt-{hashlib.sha256(route.encode()).hexdigest()[:8]}"
    hub.faults.add(Fault(route, kind, action=machine.kill))
    assert machine.run(IMPATIENT, release, repo, "--tag", "v1").code == -9
    hub.seen.clear()
    assert machine.run(IMPATIENT, release, repo, "--tag", "v1").code == 0
    assert_published(hub, repo, release)
    assert sum(seen.size for seen in hub.seen if seen.method == "PUT") == sum(map(WEIGHTS.__getitem__, sent_again))


def test_the_tag_names_what_was_merged(hub: Hub, machine: Client, release: Path) -> None:
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


def test_again_and_again(release: Path, tmp_path: Path) -> None:
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


def test_straight_to_main_it_is_all_or_nothing(hub: Hub, machine: Client, release: Path) -> None:
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
