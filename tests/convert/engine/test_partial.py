"""Files and folders that grow beside their places, and how they get their names."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from mconv.convert.engine import partial
from mconv.convert.engine.partial import (
    discard,
    discard_folder,
    exchange,
    give_name,
    lock,
    naming,
    partial_path,
    rename_new,
)
from mconv.convert.errors import DiskError


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    path = partial_path(tmp_path / "a")
    path.write_text("new")
    return path


@pytest.fixture(params=["renameat2", "older systems"])
def _any_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "older systems":
        monkeypatch.setattr(partial, "_rename", lambda *_: False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("_any_system")
def test_a_new_name_replaces_nothing(growing: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(DiskError, match="a was created by another process during the run"):
        rename_new(growing, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
    assert growing.read_text() == "new"
    (tmp_path / "a").unlink()
    rename_new(growing, tmp_path / "a")
    assert names(tmp_path) == ["a"]


@pytest.mark.usefixtures("_any_system")
def test_a_link_that_leads_nowhere_is_not_replaced_either(growing: Path, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    with pytest.raises(DiskError):
        rename_new(growing, tmp_path / "a")
    assert (tmp_path / "a").is_symlink()


@pytest.mark.usefixtures("_any_system")
def test_folders_exchange_their_names(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "what").write_text(name)
    exchange(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "what").read_text() == "new"
    assert (tmp_path / "new" / "what").read_text() == "old"
    assert names(tmp_path) == ["new", "old"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_only_the_file_that_was_written_gets_the_name(overwrite: bool, growing: Path, tmp_path: Path) -> None:
    handle = os.open(growing, os.O_WRONLY)
    growing.rename(tmp_path / "moved")
    growing.write_text("of somebody else")
    with pytest.raises(DiskError, match="another process replaced it during the run"):
        give_name(handle, growing, tmp_path / "a", overwrite=overwrite)
    assert not (tmp_path / "a").exists()
    growing.unlink()
    with pytest.raises(DiskError):
        give_name(handle, growing, tmp_path / "a", overwrite=overwrite)
    (tmp_path / "moved").rename(growing)
    give_name(handle, growing, tmp_path / "a", overwrite=overwrite)
    assert (tmp_path / "a").read_text() == "new"
    os.close(handle)


def test_what_another_run_has_is_not_discarded(growing: Path, tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    beside.write_text("x")
    with growing.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        discard(growing, beside=[beside])
    assert names(tmp_path) == ["a.partial", "beside"]
    discard(growing, inode=growing.stat().st_ino + 1, beside=[beside])
    assert names(tmp_path) == ["a.partial", "beside"]
    discard(growing, inode=growing.stat().st_ino, beside=[beside])
    assert names(tmp_path) == []
    discard(growing)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_not_a_file_is_not_discarded(kind: str, tmp_path: Path) -> None:
    path, precious = tmp_path / "a.partial", tmp_path / "precious"
    precious.write_text("mine")
    {"link": lambda: path.symlink_to(precious), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    discard(path)
    assert os.path.lexists(path)
    assert precious.read_text() == "mine"
    if kind != "folder":
        discard_folder(path)
        assert os.path.lexists(path)


def test_a_folder_is_discarded_unless_another_run_has_it(tmp_path: Path) -> None:
    (tmp_path / "a.partial" / "deep").mkdir(parents=True)
    handle = os.open(tmp_path / "a.partial", os.O_RDONLY)
    assert lock(handle, tmp_path / "a.partial")
    discard_folder(tmp_path / "a.partial")
    assert (tmp_path / "a.partial").exists()
    os.close(handle)
    discard_folder(tmp_path / "a.partial")
    assert names(tmp_path) == []


def test_a_lock_is_of_the_file_that_has_the_name(growing: Path, tmp_path: Path) -> None:
    handle = os.open(growing, os.O_WRONLY)
    growing.rename(tmp_path / "a")
    assert not lock(handle, growing)
    growing.write_text("another")
    assert not lock(handle, growing)
    assert lock(handle, tmp_path / "a")
    os.close(handle)


def test_an_error_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught, naming(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError, match="No space") as caught, naming(tmp_path / "a"):
        raise OSError(28, "No space left on device", "b")
    assert caught.value.filename == "b"
