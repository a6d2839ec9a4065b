"""ORGANIZATION/NAME in place of a path, against a Hub on loopback that the real huggingface_hub downloads from."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mconv.convert.containers.gguf import read_gguf
from mconv.validate.report.names import short_names

from support import checkpoints
from support.gguf_compare import assert_same_tensors, differing_keys
from support.hub.client import Client, Ended
from support.hub.faults import Fault
from support.hub.server import STRANGER_TOKEN, Hub

MCONV = "mconv.convert.cli.main:cli"
MQUANT = "mconv.quantize.cli:cli"
MVAL = "mconv.validate.cli:cli"
REPO = "rosa/Tiny-1M-v0.1"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral as its authors would upload it: in three shards, with files that nobody here has use for."""
    folder = checkpoints.mistral(
        tmp_path_factory.mktemp("source") / "local",
        max_shard_size=200_000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
    )
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\n---\nA model.\n")
    for name in ("consolidated.safetensors", "pytorch_model.bin", "original/params.json", "tf_model.h5"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    return folder


@pytest.fixture(scope="module")
def started(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub that has the model, for everyone."""
    server = Hub(tmp_path_factory.mktemp("hub"))
    server.storage.create(REPO)
    server.storage.push_folder(REPO, model)
    yield server
    server.stop()


@pytest.fixture
def hub(started: Hub) -> Hub:
    """The same, as if nobody had been there."""
    started.seen.clear()
    started.faults.clear()
    return started


@pytest.fixture(scope="module")
def machine(started: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A machine whose cache fills up in the course of these tests."""
    client = Client(started, tmp_path_factory.mktemp("machine"))
    yield client
    client.close()


@pytest.fixture
def machines(hub: Hub, tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Machines with an empty cache."""
    clients: list[Client] = []

    def start(name: str = "fresh", **settings: Any) -> Client:
        clients.append(Client(hub, tmp_path / name, **settings))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def refused(ended: Ended, code: int, *words: str) -> None:
    """It failed with this code and two lines, which have these words."""
    assert ended.code == code, ended
    lines = [line for line in ended.err.splitlines() if not line.startswith("note:")]
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], ended.err
    for word in words:
        assert word in ended.err


def fetched(hub: Hub) -> set[str]:
    """Names of the files whose content or headers were asked for."""
    return {seen.path.split("/resolve/")[1].split("/", 1)[1] for seen in hub.seen if "/resolve/" in seen.path}


def test_a_model_of_the_hub_is_converted_like_a_folder(hub: Hub, machine: Client, model: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here.gguf", tmp_path / "there.gguf"
    ended = machine.run(MCONV, "hf-to-gguf", REPO, there)
    assert ended.code == 0, ended.err
    commit = hub.storage.load(REPO).commit_of("main")
    # Without a terminal there is no bar: only what a person should know.
    assert ended.err.splitlines() == [f"note: {REPO} at commit {commit}"]
    assert machine.run(MCONV, "hf-to-gguf", model, here).code == 0
    assert_same_tensors(there, here)
    assert differing_keys(there, here) == {}
    metadata = read_gguf(there).metadata
    assert metadata["mconv.source.revision"].content == commit
    assert metadata["general.name"].content == "Tiny-1M-v0.1"


def test_artifacts_are_held_against_a_model_of_the_hub(hub: Hub, machine: Client, model: Path) -> None:
    ended = machine.run(MVAL, "weights", model, "--reference", f"{REPO}@main", "--json")
    assert ended.code == 0, ended.err
    commit = hub.storage.load(REPO).commit_of("main")
    (result,) = json.loads(ended.out)["results"]
    assert result["reference"].endswith(f"snapshots/{commit}")
    assert (result["exact"] > 0, result["different"]) == (True, 0)
    assert short_names([result["reference"]])[result["reference"]] == f"{REPO}@{commit[:7]}"


def test_only_what_is_read_is_fetched(hub: Hub, machines: Callable[..., Client]) -> None:
    assert machines().run(MCONV, "inspect", REPO).code == 0
    assert fetched(hub) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }


def test_what_is_in_the_cache_is_not_fetched_again(hub: Hub, machine: Client, tmp_path: Path) -> None:
    assert machine.run(MCONV, "inspect", REPO).code == 0
    hub.seen.clear()
    ended = machine.run(MQUANT, REPO, "--type", "Q8_0", "--output-dir", tmp_path)
    assert ended.code == 0, ended.err
    assert (tmp_path / "Tiny-1M-v0.1-Q8_0.gguf").is_file()
    assert not fetched(hub)


def test_a_branch_is_pinned_to_the_commit_that_it_is_at(hub: Hub, machine: Client) -> None:
    first = hub.storage.load(REPO).commit_of("main")
    try:
        # It moves when the first file is asked for.
        hub.faults.add(Fault("HEAD .*/resolve/", "call", action=lambda: hub.storage.push(REPO, "config.json", b"{}")))
        shutil.rmtree(machine.home / "hub")
        ended = machine.run(MCONV, "inspect", f"{REPO}@main")
        assert (ended.code, ended.err) == (0, f"note: {REPO} at commit {first}\n")
        assert all(first in seen.path for seen in hub.seen if "/resolve/" in seen.path)
        # The commit can still be named, the branch has no model any more.
        assert machine.run(MCONV, "inspect", f"{REPO}@{first}").code == 0
        refused(machine.run(MCONV, "inspect", REPO), 3, "config.json")
    finally:
        with hub.storage.change(REPO) as repository:
            repository.refs["refs/heads/main"] = first


def test_without_a_network_the_cache_has_to_do(hub: Hub, machine: Client) -> None:
    assert machine.run(MCONV, "inspect", REPO).code == 0
    offline = Client(hub, machine.home, variables={"HF_HUB_OFFLINE": "1"})
    hub.seen.clear()
    cached = offline.run(MCONV, "inspect", REPO)
    other = offline.run(MCONV, "inspect", "rosa/other")
    offline.close()
    assert cached.code == 0, cached.err
    refused(other, 3, "rosa/other", "HF_HUB_OFFLINE")
    assert not hub.seen


def test_a_path_that_exists_is_not_looked_up(hub: Hub, machine: Client, model: Path, tmp_path: Path) -> None:
    (machine.home / "rosa").mkdir()
    (machine.home / REPO).symlink_to(model)
    try:
        assert machine.run(MCONV, "inspect", REPO).code == 0
    finally:
        shutil.rmtree(machine.home / "rosa")
    refused(machine.run(MQUANT, "models/x.gguf", "--type", "Q8_0", "--output-dir", tmp_path), 3, "models/x.gguf")
    refused(machine.run(MCONV, "inspect", "./some/where/else"), 3, "no such file or folder")
    assert not hub.seen


def test_what_the_hub_refuses_is_said_with_what_to_do(hub: Hub, machine: Client) -> None:
    hub.storage.create("rosa/gated", gated=True)
    hub.storage.push("rosa/gated", "model.safetensors", b"")
    hub.storage.create("rosa/secret", private=True)
    stranger = {"HF_TOKEN": STRANGER_TOKEN}
    page = f"accept the terms at {hub.endpoint}/rosa/gated"
    refused(machine.run(MCONV, "inspect", "rosa/gated", variables=stranger), 5, page, "hf auth login")
    refused(machine.run(MCONV, "inspect", "rosa/gated", variables={"HF_TOKEN": ""}), 5, page)
    for name in ("rosa/secret", "rosa/none"):
        refused(machine.run(MCONV, "inspect", name, variables=stranger), 5, name, "no repository", "private")
    refused(machine.run(MCONV, "inspect", f"{REPO}@v9"), 5, "no revision v9", f"{REPO}/commits")
    bad_token = machine.run(MCONV, "inspect", REPO, variables={"HF_TOKEN": "hf_expired0123456789"})
    refused(bad_token, 5, "401", "hf auth login")
    assert "hf_expired" not in bad_token.err


def test_a_repository_without_safetensors_is_refused_before_anything_is_fetched(hub: Hub, machine: Client) -> None:
    hub.storage.create("rosa/pickled")
    hub.storage.push("rosa/pickled", "config.json", b"{}")
    hub.storage.push("rosa/pickled", "pytorch_model.bin", b"")
    refused(machine.run(MCONV, "inspect", "rosa/pickled"), 3, "rosa/pickled has no model*.safetensors")
    assert not any(seen.method == "GET" for seen in hub.seen if "/resolve/" in seen.path)


def test_a_model_larger_than_the_disk_is_refused_before_anything_is_fetched(hub: Hub, machine: Client) -> None:
    hub.storage.create("rosa/huge")
    with hub.storage.change("rosa/huge") as repository:
        entry = {**hub.storage.add_object(b"much"), "size": 10**17}
        repository.refs["refs/heads/main"] = hub.storage.commit(
            "rosa/huge", (), {"model.safetensors": entry}, "Add much", author="rosa"
        )
    refused(machine.run(MCONV, "inspect", "rosa/huge"), 4, "not enough room in", "100000000.00 GB needed", "HF_HOME")


def test_a_download_survives_what_passes(hub: Hub, machines: Callable[..., Client]) -> None:
    hub.faults.add(
        Fault("GET /api/models/", "status", status=503),
        Fault("HEAD .*/resolve/.*config.json", "status", status=500),
        Fault("GET /cdn/", "drop"),
    )
    ended = machines().run(MCONV, "inspect", REPO)
    assert ended.code == 0, ended.err
    assert "the Hub answered 503" in ended.err


def test_a_large_file_goes_on_where_the_connection_was_cut(hub: Hub, machine: Client, tmp_path: Path) -> None:
    content = random.Random(0).randbytes(24_000_000)
    (tmp_path / "model.safetensors").write_bytes(content)
    hub.storage.create("rosa/long")
    commit = hub.storage.push_folder("rosa/long", tmp_path)
    hub.faults.add(Fault("GET /cdn/", "cut"))
    # It is no model, but that is found out when it has arrived.
    refused(machine.run(MCONV, "inspect", "rosa/long"), 3, "config.json")
    snapshot = machine.home / "hub/models--rosa--long/snapshots" / commit
    assert (snapshot / "model.safetensors").read_bytes() == content
    # huggingface_hub keeps whole pieces of 10 MiB.
    assert [seen.range for seen in hub.seen if seen.path.startswith("/cdn/")] == ["", f"bytes={10 << 20}-"]


def test_a_hub_that_cannot_be_reached_is_said(hub: Hub, tmp_path: Path) -> None:
    elsewhere = Client(hub, tmp_path, variables={"HF_ENDPOINT": "http://127.0.0.1:9"})
    ended = elsewhere.run(MCONV, "inspect", REPO)
    elsewhere.close()
    refused(ended, 5, "the Hub cannot be reached", "HF_ENDPOINT")
