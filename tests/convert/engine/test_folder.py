"""Folders as outputs: old until the switch, new after it, never mixed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mconv.convert.engine import folder as module
from mconv.convert.engine import partial
from mconv.convert.engine.folder import FolderOutput, check_folder, run_folder
from mconv.convert.engine.plan import FolderPlan
from mconv.convert.errors import DiskError, UsageError
from mconv.convert.layouts.layout import refuses_none
from mconv.convert.tensors.rows import Target

from support import plans
from support.processes import in_child

NEW = {"config.json": b"new", "deep/notes.json": b"new"}


@pytest.fixture
def targets(tmp_path: Path) -> list[Target]:
    (tmp_path / "read").mkdir()
    return plans.write_source(tmp_path / "read" / "source")


@pytest.fixture
def output(tmp_path: Path, targets: list[Target]) -> FolderOutput:
    weights = {f"part-{name}.bin": plans.plan(targets, name) for name in ("F16", "F32")}
    return FolderOutput(FolderPlan(weights, NEW), tmp_path / "out", lambda path: path.suffix != ".md", refuses_none)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def new(output: FolderOutput, tmp_path: Path) -> dict[str, bytes]:
    """What the folder holds when it is written."""
    run_folder(FolderOutput(output.plan, tmp_path / "elsewhere", output.replaces, output.refuses))
    return contents(tmp_path / "elsewhere")


def fill(folder: Path) -> dict[str, bytes]:
    """An older checkpoint, with notes of somebody."""
    folder.mkdir()
    for name in ("config.json", "part-F16.bin", "tokenizer.json", "mine.md"):
        (folder / name).write_text("old")
    return contents(folder)


def test_all_of_it_or_nothing(output: FolderOutput, new: dict[str, bytes], tmp_path: Path) -> None:
    assert set(new) == {*output.plan.weights, *NEW}
    check_folder(output, [], overwrite=False)
    run_folder(output)
    assert contents(tmp_path / "out") == new
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out", "read"]


def test_what_is_replaced_and_what_stays(output: FolderOutput, new: dict[str, bytes], tmp_path: Path) -> None:
    fill(tmp_path / "out")
    with pytest.raises(DiskError, match="exists already and is not empty"):
        check_folder(output, [], overwrite=False)
    check_folder(output, [], overwrite=True)
    run_folder(output, overwrite=True)
    assert contents(tmp_path / "out") == {**new, "mine.md": b"old"}


@pytest.mark.parametrize("step", ["exchange", "rmtree", "write_files", "remove_journal"])
def test_a_kill_at_the_switch_leaves_the_old_folder_or_the_new_one(
    step: str, output: FolderOutput, new: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fill(tmp_path / "out")

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil if step == "rmtree" else module, step, die)
        assert in_child(lambda: run_folder(output, overwrite=True)) == -signal.SIGKILL
    whole = {**new, "mine.md": b"old"}
    assert contents(tmp_path / "out") == (whole if step == "rmtree" else old)
    ended = run_folder(output, overwrite=True)
    assert contents(tmp_path / "out") == whole
    assert not (tmp_path / "out.partial").exists()
    # At the switch itself nothing is left to be continued: the journals are gone, and the folder is whole.
    assert (ended.resumed == ended.total) == (step in ("write_files", "remove_journal"))


def test_file_systems_without_an_exchange(
    output: FolderOutput, new: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "_rename", lambda *_: False)
    fill(tmp_path / "out")
    run_folder(output, overwrite=True)
    assert contents(tmp_path / "out") == {**new, "mine.md": b"old"}
    assert not list(tmp_path.glob("*.replaced"))


@pytest.mark.parametrize("made", ["folder", "filled", "file"])
def test_what_was_made_meanwhile_is_not_replaced(
    made: str, output: FolderOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, write = tmp_path / "out", module.write_files
    make: dict[str, Callable[[], object]] = {
        "folder": place.mkdir,
        "filled": lambda: fill(place),
        "file": lambda: place.write_text("x"),
    }

    def meanwhile(folder: Path, files: dict[str, bytes]) -> None:
        write(folder, files)
        make[made]()

    monkeypatch.setattr(module, "write_files", meanwhile)
    if made == "folder":
        run_folder(output)
        assert (place / "config.json").exists()
        return
    with pytest.raises(DiskError):
        run_folder(output)
    assert place.read_text() == "x" if made == "file" else contents(place)["config.json"] == b"old"
    assert not (tmp_path / "out.partial").exists()


def test_what_is_refused_before_anything_is_written(output: FolderOutput, tmp_path: Path) -> None:
    place = tmp_path / "out"

    def with_path(path: Path) -> FolderOutput:
        return FolderOutput(output.plan, path, output.replaces, output.refuses)

    with pytest.raises(UsageError, match="contains input files"):
        check_folder(with_path(tmp_path / "read"), [tmp_path / "read" / "source"], overwrite=True)
    with pytest.raises(DiskError, match="no such folder"):
        check_folder(with_path(tmp_path / "a" / "b"), [], overwrite=False)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DiskError, match="loop"):
        check_folder(with_path(tmp_path / "loop"), [], overwrite=False)
    place.write_text("x")
    with pytest.raises(DiskError, match="is not a folder"):
        check_folder(output, [], overwrite=True)
    place.unlink()
    (place / "config.json").mkdir(parents=True)
    with pytest.raises(DiskError, match=r"config\.json is in the way"):
        check_folder(output, [], overwrite=True)
    with pytest.raises(DiskError, match="because"):
        check_folder(FolderOutput(output.plan, place, output.replaces, lambda _: "because"), [], overwrite=True)
    assert [path.name for path in place.iterdir()] == ["config.json"]
