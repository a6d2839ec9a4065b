"""Building and checking a release: whole, killed and gone on with, changed, in the way of others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from mconv.convert.cli.main import cli as mconv
from mconv.convert.containers.gguf_split import read_gguf_model
from mconv.inference.llama_cpp_model import LlamaCppModel
from mconv.release.cli import cli
from mconv.release.inputs import open_inputs
from mconv.release.project import open_project
from mconv.release.publish.readiness import unaccepted_gates

from support.command_line import Command
from support.gguf_compare import assert_same_tensors
from support.gguf_imatrix import write_gguf_imatrix
from support.hub.client import Client
from support.hub.server import Hub
from support.releases import MODEL, TEXT, copy_release, mrelease, published, write_recipe

NAME = "tiny-mistral-GGUF"
WEIGHTS = {"tiny-mistral-Q4_K_M.gguf", "tiny-mistral-Q8_0.gguf"}
FILES = WEIGHTS | {
    "Modelfile",
    "README.md",
    "SHA256SUMS",
    "oumi-inference.yaml",
    "provenance.json",
    "recipe.toml",
    "report.html",
    "size-vs-kl.svg",
    "validation.json",
}


def inodes(folder: Path) -> dict[str, int]:
    """By name; a file that is made anew is another one."""
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_a_release_is_whole(released: Path) -> None:
    folder = released.parent / NAME
    assert published(folder).keys() == FILES
    for file in folder.iterdir():
        assert not file.is_symlink() and not file.name.endswith(".partial")
    checked = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert {line.split(": ")[0] for line in checked.stdout.splitlines()} == FILES - {"SHA256SUMS"}


def test_nothing_of_this_machine_is_in_it(released: Path) -> None:
    folder = released.parent / NAME
    for name, content in published(folder).items():
        for place in (str(released.parent), str(MODEL.parent)):
            assert place.encode() not in content, (name, place)


def test_what_is_killed_anywhere_goes_on_to_the_same_bytes(released: Path, tmp_path: Path) -> None:
    recipe = shutil.copy(released, tmp_path / released.name)
    kills = 0
    # Seven to eleven names are given in a build, and each run begins where the last one died.
    for place in count(1, 2):
        ended = mrelease("build", recipe, dies_at=place)
        if ended.returncode == 0:
            break
        assert ended.returncode == -9, ended.stderr
        assert "SHA256SUMS" not in published(tmp_path / NAME)
        kills += 1
    assert kills >= 3
    # Before anything is measured; in the middle of the report; in the middle of the documents.
    for place in (2, 7, 5):
        assert mrelease("check", recipe, dies_at=place).returncode == -9
    ended = mrelease("check", recipe)
    assert ended.returncode == 0, ended.stderr
    assert published(tmp_path / NAME) == published(released.parent / NAME)
    assert not list((tmp_path / NAME).glob("*.partial"))


def test_what_is_done_is_not_done_again(released: Path, tmp_path: Path, command: Command) -> None:
    recipe = copy_release(released, tmp_path / "copy")
    before = inodes(recipe.parent / NAME)
    for step in ("build", "check"):
        ended = command(cli, step, recipe, "--json")
        assert (ended.code, ended.err) == (0, "")
    after = inodes(recipe.parent / NAME)
    before.pop("build-state.json"), after.pop("build-state.json", None)
    assert after == before
    assert {Path(file["path"]).name for file in ended.json["files"]} == FILES
    plan = command(cli, "plan", recipe, "--json").json
    assert all(item["done"] for item in plan["items"])
    assert (plan["needed"], plan["build_seconds"], plan["check_seconds"]) == (0, 0, 0)


def test_the_plan_is_exact_and_writes_nothing(released: Path, tmp_path: Path, command: Command) -> None:
    recipe = shutil.copy(released, tmp_path / "recipe.toml")
    for words in (("plan",), ("build", "--dry-run"), ("run", "--dry-run")):
        plan = command(cli, words[0], recipe, *words[1:], "--json").json
        sizes = {item["file"]: item["bytes"] for item in plan["items"] if item["bytes"] is not None}
        actual = {name: len(content) for name, content in published(released.parent / NAME).items()}
        assert sizes == {name: actual[name] for name in sizes} and sizes.keys() >= WEIGHTS
        assert not any(item["done"] for item in plan["items"])
        assert plan["needed"] == sum(sizes.values())
        assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
    assert plan["repository"] == "rosa/tiny-mistral-GGUF"
    assert {item["file"] for item in plan["items"]} == FILES
    table = command(cli, "plan", recipe)
    assert "to do" in table.out and "12.4 MB needed" in table.out


class TestAChangedRecipe:
    """It redoes what depends on it, and nothing else."""

    def test_another_recommendation(self, released: Path, tmp_path: Path, command: Command) -> None:
        recipe = copy_release(released, tmp_path / "copy")
        folder = recipe.parent / NAME
        before = inodes(folder)
        write_recipe(recipe, recommended="Q8_0")
        refused = command(cli, "publish", recipe, "--dry-run")
        assert refused.code == 2 and "not built, changed since, or not from this recipe" in refused.err
        assert command(cli, "build", recipe).code == 0
        # What the sums say of the small files is no longer so.
        assert not (folder / "SHA256SUMS").exists()
        assert command(cli, "check", recipe).code == 0
        after = inodes(folder)
        for name in WEIGHTS | {"validation.json", "report.html", ".measurements.json"}:
            assert before[name] == after[name], name
        assert "Q8_0" in (folder / "Modelfile").read_text()

    def test_other_gates(self, released: Path, tmp_path: Path, command: Command) -> None:
        recipe = copy_release(released, tmp_path / "copy")
        folder = recipe.parent / NAME
        before = inodes(folder)
        (recipe.parent / "gates.toml").write_text("[every]\nkl_mean = 1e-12\n")
        write_recipe(recipe, gates="gates.toml")
        assert command(cli, "build", recipe).code == 0
        failed = command(cli, "check", recipe)
        assert failed.code == 1
        assert "kl_mean fails" in failed.err and "--accept-failed-gates" in failed.err
        # It was written all the same, and nothing was measured again.
        assert inodes(folder)[".measurements.json"] == before[".measurements.json"]
        assert json.loads((folder / "validation.json").read_text())["passed"] is False
        assert "limits on what these files may lose" in (folder / "README.md").read_text()
        for target in (("publish", recipe), ("publish", folder, "--repo", "rosa/x")):
            assert command(cli, *target, "--dry-run").code == 1
        blank = command(cli, "check", recipe, "--accept-failed-gates", " ")
        assert (blank.code, "reason" in blank.err) == (2, True)
        accepted = command(cli, "check", recipe, "--accept-failed-gates", "A <b>toy</b>.")
        assert accepted.code == 0
        assert "Published all the same: A &lt;b&gt;toy&lt;/b&gt;." in (folder / "README.md").read_text()
        parameters = json.loads((folder / "provenance.json").read_text())["predicate"]["buildDefinition"]
        said = parameters["externalParameters"]["acceptedFailedGates"]
        assert said["reason"] == "A <b>toy</b>."
        assert len(said["gates"]) == 2 and all("kl_mean" in gate for gate in said["gates"])
        assert command(cli, "publish", recipe, "--dry-run").code == 1
        words = ("--dry-run", "--accept-failed-gates", "A <b>toy</b>.")
        assert command(cli, "publish", recipe, *words).code == 0
        assert unaccepted_gates(folder) == []
        # What was accepted is those gates and no others.
        statement = (folder / "provenance.json").read_text()
        (folder / "provenance.json").write_text(statement.replace("tiny-mistral-Q8_0.gguf: kl_mean", "kl_mean"))
        assert [gate["file"] for gate in unaccepted_gates(folder)] == ["tiny-mistral-Q8_0.gguf"]

    def test_one_type_less_and_one_more(self, released: Path, tmp_path: Path, command: Command) -> None:
        recipe = copy_release(released, tmp_path / "copy")
        folder = recipe.parent / NAME
        before = inodes(folder)
        write_recipe(recipe, types=["Q4_K_M", "F16"])
        ended = command(cli, "build", recipe)
        assert ended.code == 0
        assert "tiny-mistral-Q8_0.gguf is removed" in ended.err
        after = inodes(folder)
        assert after["tiny-mistral-Q4_K_M.gguf"] == before["tiny-mistral-Q4_K_M.gguf"]
        assert "tiny-mistral-F16.gguf" in after
        # What said that the release is whole is gone until it is.
        assert after.keys().isdisjoint({"README.md", "SHA256SUMS", "provenance.json", "tiny-mistral-Q8_0.gguf"})
        unfinished = command(cli, "publish", folder, "--repo", "rosa/x", "--dry-run")
        assert (unfinished.code, "not finished" in unfinished.err) == (2, True)
        refused = command(cli, "publish", recipe, "--dry-run")
        assert (refused.code, "not checked" in refused.err) == (2, True)
        assert not next(i for i in command(cli, "plan", recipe, "--json").json["items"] if i["file"] == "README.md")[
            "done"
        ]


def test_a_file_with_another_sum_is_never_used(released: Path, tmp_path: Path, command: Command) -> None:
    recipe = copy_release(released, tmp_path / "copy")
    folder = recipe.parent / NAME
    path = folder / "tiny-mistral-Q8_0.gguf"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused = command(cli, "publish", recipe, "--dry-run")
    assert (refused.code, "Q8_0" in refused.err) == (2, True)
    ended = command(cli, "build", recipe)
    assert ended.code == 0
    assert "tiny-mistral-Q8_0.gguf is not what was built: it is made again" in ended.err
    assert path.read_bytes() == whole
    assert command(cli, "check", recipe).code == 0
    assert published(folder) == published(released.parent / NAME)


@pytest.mark.parametrize("name", ["tiny-mistral-Q8_0.gguf", "recipe.toml", "README.md", "SHA256SUMS"])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, command: Command, name: str) -> None:
    recipe = write_recipe(tmp_path / "r.toml")
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / name).write_text("mine")
    ended = command(cli, "build", recipe)
    assert ended.code == 4
    assert f"{name} exists already and was not built here" in ended.err
    assert [path.name for path in (tmp_path / NAME).glob("*") if path.name != "build-state.json"] == [name]
    assert (tmp_path / NAME / name).read_text() == "mine"


@pytest.mark.parametrize(
    "state", ["{", "[]", '{"schema_version": 9}', '{"schema_version": 1, "steps": {"x": 1}, "sums": {}}']
)
def test_a_damaged_state_is_refused(tmp_path: Path, command: Command, state: str) -> None:
    recipe = write_recipe(tmp_path / "r.toml")
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "build-state.json").write_text(state)
    ended = command(cli, "build", recipe)
    assert (ended.code, ended.err.count("\n")) == (3, 2)
    assert "build-state.json is not what this version writes" in ended.err


def test_a_release_needs_a_folder(tmp_path: Path, command: Command) -> None:
    recipe = write_recipe(tmp_path / "r.toml")
    (tmp_path / NAME).touch()
    for step in ("plan", "build"):
        ended = command(cli, step, recipe)
        assert (ended.code, f"{NAME} is not a folder" in ended.err) == (4, True)


def test_where_it_goes_is_asked_before_it_is_built(tmp_path: Path, command: Command) -> None:
    ended = command(cli, "run", write_recipe(tmp_path / "r.toml", repository=None))
    assert (ended.code, "repository is missing" in ended.err) == (2, True)
    assert not list((tmp_path / NAME).glob("*.gguf"))


def test_a_state_cannot_have_files_elsewhere_removed(tmp_path: Path, command: Command) -> None:
    recipe = write_recipe(tmp_path / "r.toml")
    (tmp_path / NAME).mkdir()
    steps = {"old": {"state": "done", "inputs": "0", "outputs": {"../r.toml": None}}}
    state = {"schema_version": 1, "steps": steps, "sums": {}}
    (tmp_path / NAME / "build-state.json").write_text(json.dumps(state))
    assert command(cli, "build", recipe).code == 3
    assert recipe.exists()


def test_two_builds_at_once(released: Path, tmp_path: Path, command: Command) -> None:
    import fcntl

    recipe = copy_release(released, tmp_path / "copy")
    handle = os.open(recipe.parent / NAME, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    ended = command(cli, "build", recipe)
    os.close(handle)
    assert (ended.code, "another run" in ended.err) == (4, True)


def test_what_is_not_built_is_not_checked(tmp_path: Path, command: Command) -> None:
    ended = command(cli, "check", write_recipe(tmp_path / "r.toml"))
    assert ended.code == 2
    assert "not built" in ended.err and "mrelease build" in ended.err


def test_large_files_are_split(released: Path, tmp_path: Path, command: Command) -> None:
    recipe = write_recipe(tmp_path / "r.toml", split_above="3MB", types=["Q4_K_M"])
    ended = command(cli, "build", recipe)
    assert ended.code == 0, ended.err
    folder = tmp_path / NAME
    parts = sorted(folder.glob("*.gguf"))
    assert [part.name for part in parts] == [f"tiny-mistral-Q4_K_M-0000{n}-of-00002.gguf" for n in (1, 2)]
    assert "no Modelfile" in ended.err and not (folder / "Modelfile").exists()
    whole = read_gguf_model(released.parent / NAME / "tiny-mistral-Q4_K_M.gguf")
    model = read_gguf_model(parts[0])
    assert model.metadata == whole.metadata
    for ours, theirs in zip(model.tensors, whole.tensors, strict=True):
        assert ours.name == theirs.name and (ours.read(0, 4) == theirs.read(0, 4)).all()
    with LlamaCppModel(parts[0], threads=1) as runtime:
        assert runtime.vocab_size == 2048


@pytest.mark.parametrize(
    ("layout", "name", "files"),
    [
        ("gguf", "tiny-BF16.gguf", {"tiny-BF16.gguf"}),
        ("megatron", "megatron", {"config.json", "release/__0_0.distcp", "release/.metadata", "tokenizer.model"}),
    ],
)
def test_other_layouts(
    released: Path, tmp_path: Path, command: Command, layout: str, name: str, files: set[str]
) -> None:
    assert command(mconv, f"hf-to-{layout}", MODEL, tmp_path / name).code == 0
    recipe = write_recipe(tmp_path / "r.toml", source=name, types=["Q8_0"])
    assert command(cli, "build", recipe).code == 0
    made = "tiny-mistral-Q8_0.gguf"
    assert_same_tensors(tmp_path / NAME / made, released.parent / NAME / made)
    found = open_inputs(open_project(recipe, None)).files
    assert found.keys() >= files
    assert all((tmp_path / name).resolve() in (path, *path.parents) for path in found.values())


def test_an_importance_matrix_goes_along(tmp_path: Path, command: Command) -> None:
    names = [f"blk.{layer}.ffn_down.weight" for layer in range(8)]
    sums = {name: np.linspace(1, 900, 512, dtype=np.float32)[None] for name in names}
    write_gguf_imatrix(tmp_path / "matrix.gguf", sums, {name: np.array([[512]], np.float32) for name in names})
    recipe = write_recipe(tmp_path / "r.toml", types=["Q4_K_M"], imatrix="matrix.gguf")
    ended = command(cli, "build", recipe)
    assert ended.code == 0
    assert "no importance values for" in ended.err
    assert "the card has no base model" in ended.err and "no LICENSE" in ended.err
    folder = tmp_path / NAME
    assert (folder / "matrix.gguf").read_bytes() == (tmp_path / "matrix.gguf").read_bytes()
    metadata = read_gguf_model(folder / "tiny-mistral-Q4_K_M.gguf").metadata
    assert metadata["quantize.imatrix.file"].content == "matrix.gguf"
    # Its name is one of a file that is made.
    (tmp_path / "matrix.gguf").rename(tmp_path / "tiny-mistral-Q8_0.gguf")
    write_recipe(recipe, imatrix="tiny-mistral-Q8_0.gguf")
    assert command(cli, "plan", recipe).code == 2


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub that has the example."""
    server = Hub(tmp_path / "hub")
    server.storage.create("rosa/tiny-mistral")
    server.storage.push_folder("rosa/tiny-mistral", MODEL)
    yield server
    server.stop()


def test_from_the_hub_and_to_it(released: Path, tmp_path: Path, hub: Hub) -> None:
    commit = hub.storage.load("rosa/tiny-mistral").commit_of("main")
    machine = Client(hub, tmp_path / "machine")
    try:
        recipe = tmp_path / "r.toml"
        drafted = machine.run("mconv.release.cli:cli", "init", "rosa/tiny-mistral@main", recipe, "--text", TEXT)
        assert drafted.code == 0, drafted.err
        # The card tells what a recipe begins with; the weights are not fetched for that.
        assert not any(seen.path.endswith("model.safetensors") for seen in hub.seen)
        members = tomllib.loads(recipe.read_text())
        assert members["source"] == f"rosa/tiny-mistral@{commit}"
        assert (members["base_model"], members["licence"]) == ("rosa/tiny-mistral", "apache-2.0")
        write_recipe(recipe, source=members["source"], types=["Q8_0"])
        built = machine.run("mconv.release.cli:cli", "build", recipe)
        assert built.code == 0, built.err
        made = "tiny-mistral-Q8_0.gguf"
        assert_same_tensors(tmp_path / NAME / made, released.parent / NAME / made)
        assert read_gguf_model(tmp_path / NAME / made).metadata["mconv.source.revision"].content == commit

        sent = machine.run("mconv.release.cli:cli", "publish", copy_release(released, tmp_path / "copy"))
        assert sent.code == 0, sent.err
        assert hub.storage.load("rosa/tiny-mistral-GGUF").private
        listing = hub.storage.files("rosa/tiny-mistral-GGUF", "main")
        assert {name: content for name, content in listing.items() if name != ".gitattributes"} == published(
            released.parent / NAME
        )
    finally:
        machine.close()
