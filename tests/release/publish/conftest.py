"""A Hub on loopback and the machine that publishes to it, with the real huggingface_hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.hub.client import Client
from support.hub.server import OWNER_TOKEN, Hub
from support.publications import STATE, build


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub for all tests of this folder; each has repositories of its own."""
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


@pytest.fixture(scope="session")
def machine(started: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The machine that publishes."""
    client = Client(started, tmp_path_factory.mktemp("machine"))
    yield client
    client.close()


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release folder with two files of weights: one is sent whole, one in three parts."""
    return build(tmp_path / "release")


@pytest.fixture(autouse=True)
def _no_token_is_written(tmp_path: Path) -> Iterator[None]:
    """The state has no token in it, whatever happened. What is printed is looked at by `Client`."""
    yield
    assert not [path for path in tmp_path.rglob(STATE) if OWNER_TOKEN in path.read_text()]
