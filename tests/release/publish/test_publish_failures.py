"""Publishing when something fails once or twice, and is tried again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.hub.client import Client
from support.hub.faults import Fault
from support.hub.server import Hub
from support.publications import IMPATIENT, assert_published, refused

SURVIVED = {
    "an error on the way to the commit": Fault("POST .*/preupload/", "status", status=500),
    "an error instead of a commit": Fault("POST .*/commit/", "status", times=2, status=503),
    "an error instead of a merge": Fault("POST .*/merge$", "status", status=502),
    "an error while verifying": Fault("GET .*/tree/refs", "status", status=504),
    "a page instead of an answer about the card": Fault("POST /api/validate-yaml", "page", status=502, after=1),
    "an address of the storage that has run out": Fault("PUT .*/2$", "status", status=403),
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


@pytest.mark.parametrize("name", SURVIVED)
def test_it_is_survived(hub: Hub, machine: Client, release: Path, name: str) -> None:
    repo = f"rosa/survived-{list(SURVIVED).index(name)}"
    hub.faults.add(fault := SURVIVED[name])
    ended = machine.run(IMPATIENT, release, repo, "--tag", "v1")
    assert ended.code == 0, ended.err
    assert fault.times == 0
    assert_published(hub, repo, release)


def test_the_answer_to_the_only_commit_is_lost(hub: Hub, machine: Client, release: Path) -> None:
    hub.faults.add(Fault("POST .*/commit/", "lost"))
    ended = machine.run(IMPATIENT, release, "rosa/once", "--tag", "v1", "--no-pr")
    assert ended.code == 0, ended.err
    assert_published(hub, "rosa/once", release, requests=0)
    assert len(hub.storage.history("rosa/once", hub.storage.load("rosa/once").commit_of("main"))) == 2


def test_as_long_as_the_hub_asks_is_waited(hub: Hub, machine: Client, release: Path) -> None:
    hub.faults.add(Fault("POST .*/merge$", "status", status=429, headers={"Retry-After": "1"}))
    began = time.monotonic()
    ended = machine.run(IMPATIENT, release, "rosa/hurry", "--tag", "v1")
    assert ended.code == 0, ended.err
    assert time.monotonic() - began > 1
    assert "trying again in 1.0 s" in ended.err
    assert_published(hub, "rosa/hurry", release)


def test_longer_than_is_bearable_is_not_waited(hub: Hub, machine: Client, release: Path) -> None:
    hub.faults.add(Fault("POST .*/merge$", "status", status=429, headers={"Retry-After": "3600"}))
    refused(machine.run(IMPATIENT, release, "rosa/limit"), "429", "it continues where it stopped")


def test_what_does_not_pass_is_given_up_and_taken_up_again(hub: Hub, machine: Client, release: Path) -> None:
    hub.faults.add(Fault("POST .*/merge$", "status", times=4, status=500))
    ended = machine.run(IMPATIENT, release, "rosa/down", "--tag", "v1")
    refused(ended, "the Hub answered 500", "it continues")
    assert ended.err.count("trying again") == 3
    hub.seen.clear()
    assert machine.run(IMPATIENT, release, "rosa/down", "--tag", "v1").code == 0
    assert not [seen for seen in hub.seen if "/commit/" in seen.path]
    assert_published(hub, "rosa/down", release)


def test_an_error_of_ours_is_not_tried_again(hub: Hub, machine: Client, release: Path) -> None:
    hub.faults.add(Fault("POST .*/commit/", "status", status=422))
    ended = machine.run(IMPATIENT, release, "rosa/unprocessable")
    refused(ended, "the Hub answered 422")
    assert "trying again" not in ended.err
