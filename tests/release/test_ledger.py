"""The ledger: what is done stays done until an input, an output or the ledger itself is another."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mconv.convert.errors import DiskError, FormatError, SourceError
from mconv.convert.reporting import Listener, listening
from mconv.release import ledger as ledger_module
from mconv.release.files import FileDigest, digest_file
from mconv.release.ledger import Ledger, Step, content_step, open_ledger, read_ledger, write_contents

STATE = "build-state.json"


def step(name: str = "weights", *outputs: str, **inputs: Any) -> Step:
    """A step that makes some files out of some inputs."""
    return Step(name, outputs or ("model.gguf",), lambda: inputs)


def carry_out(ledger: Ledger, done: Step, content: bytes = b"made") -> None:
    """What a run does for a step."""
    ledger.begin(done)
    for name in done.outputs:
        (ledger.folder / name).write_bytes(content)
    ledger.finish(done)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release folder that is not there yet."""
    return tmp_path / "deep/release"


class TestFresh:
    def test_a_folder_that_is_not_there_has_an_empty_ledger(self, folder: Path) -> None:
        ledger = read_ledger(folder)
        assert not ledger.is_done(step()) and not ledger.is_intact("weights")
        assert ledger.names("weights") == ()
        # To look writes nothing.
        assert not folder.exists()

    def test_to_open_makes_the_folder_and_no_state(self, folder: Path) -> None:
        with open_ledger(folder):
            assert list(folder.iterdir()) == []

    def test_a_step_is_done_once_it_is_finished(self, folder: Path) -> None:
        with open_ledger(folder) as ledger:
            ledger.begin(step(bits=4))
            assert not ledger.is_done(step(bits=4))
            (folder / "model.gguf").write_bytes(b"made")
            assert not ledger.is_done(step(bits=4))
            ledger.finish(step(bits=4))
            assert ledger.is_done(step(bits=4)) and ledger.is_intact("weights")
            assert ledger.names("weights") == ("model.gguf",)
            assert ledger.outputs(["model.gguf"]) == {"model.gguf": digest_file(folder / "model.gguf")}

    def test_what_others_put_there_is_left_alone(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.gguf").symlink_to("nowhere")
        with open_ledger(folder) as ledger, pytest.raises(DiskError, match="exists already and was not built here"):
            ledger.begin(step())
        assert (folder / "model.gguf").is_symlink() and not (folder / STATE).exists()


class TestResumed:
    def test_a_later_run_knows_what_is_done(self, folder: Path) -> None:
        with open_ledger(folder) as ledger:
            carry_out(ledger, step(bits=4))
        before = (folder / STATE).read_bytes()
        with open_ledger(folder) as ledger:
            assert ledger.is_done(step(bits=4))
            ledger.save()
        assert (folder / STATE).read_bytes() == before

    def test_a_step_that_was_only_begun_is_done_again(self, folder: Path) -> None:
        with open_ledger(folder) as ledger:
            carry_out(ledger, step("first", "first.gguf", bits=4))
            ledger.begin(step("second", "second.gguf", bits=6))
            (folder / "second.gguf").write_bytes(b"hal")
        with open_ledger(folder) as ledger:
            assert ledger.is_done(step("first", "first.gguf", bits=4))
            assert not ledger.is_done(step("second", "second.gguf", bits=6)) and not ledger.is_intact("second")
            # What the killed run left is its own, and may be replaced.
            ledger.check_free(["second.gguf"])
            carry_out(ledger, step("second", "second.gguf", bits=6))
            assert ledger.is_done(step("second", "second.gguf", bits=6))

    def test_no_file_is_read_twice(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_ledger(folder) as ledger:
            carry_out(ledger, step())

        def read(path: Path, size: int) -> FileDigest:
            raise AssertionError(f"{path} of {size} bytes was read")

        monkeypatch.setattr(ledger_module, "_read_sum", read)
        with open_ledger(folder) as ledger:
            assert ledger.is_done(step())


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What a ledger tells."""
    lines: list[str] = []
    with listening(Listener(note=lines.append)):
        yield lines


class TestAChangedInput:
    def test_the_step_is_not_done(self, folder: Path) -> None:
        with open_ledger(folder) as ledger:
            carry_out(ledger, step(bits=4, texts=["a", "b"]))
            assert ledger.is_done(step(texts=["a", "b"], bits=4))
            assert not ledger.is_done(step(texts=["b", "a"], bits=4))
            assert not ledger.is_done(step(bits=5, texts=["a", "b"]))
            # Its files are still those that it made.
            assert ledger.is_intact("weights")

    def test_a_file_that_it_no_longer_makes_goes_away(self, folder: Path) -> None:
        with open_ledger(folder) as ledger:
            carry_out(ledger, step("weights", "part-1.gguf", "part-2.gguf"))
            assert not ledger.is_done(step("weights", "part-1.gguf"))
            ledger.begin(step("weights", "part-1.gguf"))
            assert [path.name for path in sorted(folder.glob("*.gguf"))] == ["part-1.gguf"]

    def test_a_step_that_is_not_wanted_any_more(self, folder: Path, heard: list[str]) -> None:
        with open_ledger(folder) as ledger:
            carry_out(ledger, step("old", "old.gguf"))
            carry_out(ledger, step("new", "new.gguf"))
            ledger.keep_only(["new", "later"])
            assert [path.name for path in folder.glob("*.gguf")] == ["new.gguf"]
        assert heard == ["old.gguf is removed: the recipe does not ask for it any more"]
        assert list(json.loads((folder / STATE).read_text())["steps"]) == ["new"]

    def test_small_files_are_written_where_their_content_changed(self, folder: Path) -> None:
        with open_ledger(folder) as ledger:
            write_contents(ledger, "card", {"README.md": b"one"})
            before = (folder / "README.md").stat().st_ino
            write_contents(ledger, "card", {"README.md": b"one"})
            assert (folder / "README.md").stat().st_ino == before
            write_contents(ledger, "card", {"README.md": b"two"})
            assert (folder / "README.md").read_bytes() == b"two"
            assert ledger.is_done(content_step("card", {"README.md": b"two"}))

    def test_an_input_is_read_again_when_it_changes(self, folder: Path, tmp_path: Path) -> None:
        text = tmp_path / "text.txt"
        text.write_bytes(b"before")
        with open_ledger(folder) as ledger:
            first = ledger.digest(text)
            ledger.save()
            text.write_bytes(b"after!")
            os.utime(text, ns=(0, 1))
            assert ledger.digest(text) == digest_file(text) != first
        with open_ledger(folder) as ledger:
            assert ledger.digest(text) == digest_file(text)


class TestAChangedOutput:
    @pytest.mark.parametrize("content", [b"mad", b"maDe", b"made more"])
    def test_a_file_of_another_content_is_made_again(self, folder: Path, content: bytes, heard: list[str]) -> None:
        with open_ledger(folder) as ledger:
            carry_out(ledger, step())
            (folder / "model.gguf").write_bytes(content)
            os.utime(folder / "model.gguf", ns=(0, 1))
            assert not ledger.is_done(step()) and not ledger.is_intact("weights")
            carry_out(ledger, step())
            assert ledger.is_done(step())
        assert heard == ["model.gguf is not what was built: it is made again"]

    def test_a_file_that_was_only_touched_is_still_done(self, folder: Path) -> None:
        with open_ledger(folder) as ledger:
            carry_out(ledger, step())
            os.utime(folder / "model.gguf", ns=(0, 1))
            assert ledger.is_done(step())

    def test_a_file_that_is_gone_or_a_link(self, folder: Path) -> None:
        with open_ledger(folder) as ledger:
            carry_out(ledger, step())
            (folder / "model.gguf").rename(folder / "moved.gguf")
            assert not ledger.is_done(step()) and not ledger.is_intact("weights")
            (folder / "model.gguf").symlink_to("moved.gguf")
            assert not ledger.is_done(step()) and not ledger.is_intact("weights")

    def test_to_discard_a_step_removes_its_files(self, folder: Path) -> None:
        with open_ledger(folder) as ledger:
            carry_out(ledger, step())
            ledger.discard("weights", "never begun")
            assert not (folder / "model.gguf").exists() and not ledger.is_done(step())
        with open_ledger(folder) as ledger:
            assert ledger.names("weights") == ()


class TestADamagedState:
    @pytest.mark.parametrize(
        "state",
        [
            "",
            "{",
            "[]",
            "{}",
            "\ud800",
            "[" * 100_000,
            '{"schema_version": 2, "steps": {}, "sums": {}}',
            '{"schema_version": 1, "steps": {}}',
            '{"schema_version": 1, "steps": [], "sums": {}}',
            '{"schema_version": 1, "steps": {"a": {"inputs": null}}, "sums": {}}',
            '{"schema_version": 1, "steps": {"a": {"inputs": null, "outputs": {"b": {"size": 1}}}}, "sums": {}}',
            '{"schema_version": 1, "steps": {}, "sums": {"a": {"sha256": "0", "size": 1}}}',
        ],
    )
    def test_it_is_refused(self, folder: Path, state: str) -> None:
        folder.mkdir(parents=True)
        (folder / STATE).write_bytes(state.encode("utf-8", "surrogatepass"))
        for look in (lambda: read_ledger(folder), lambda: open_ledger(folder).__enter__()):
            with pytest.raises(FormatError, match=r"build-state\.json is not what this version writes") as raised:
                look()
            assert "build the release again" in raised.value.hint
        assert (folder / STATE).read_bytes() == state.encode("utf-8", "surrogatepass")

    @pytest.mark.parametrize("name", ["../recipe.toml", "/etc/passwd", "a/b", "..", ".", ""])
    def test_it_names_no_file_outside_the_folder(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True)
        steps = {"old": {"state": "done", "inputs": "0", "outputs": {name: None}}}
        (folder / STATE).write_text(json.dumps({"schema_version": 1, "steps": steps, "sums": {}}))
        with pytest.raises(FormatError, match=r"build-state\.json"):
            read_ledger(folder)

    def test_a_pipe_in_its_place_is_not_waited_for(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        os.mkfifo(folder / STATE)
        with pytest.raises(SourceError, match="is not a regular file"):
            read_ledger(folder)

    @pytest.mark.parametrize("make", [Path.touch, os.mkfifo, lambda path: path.symlink_to(path.name)])
    def test_a_folder_that_is_not_one(self: Any, folder: Path, make: Any) -> None:
        folder.parent.mkdir()
        make(folder)
        for look in (lambda: read_ledger(folder), lambda: open_ledger(folder).__enter__()):
            with pytest.raises(DiskError, match="is not a folder") as raised:
                look()
            assert str(folder) in raised.value.what


class TestTwoWriters:
    def test_the_second_is_refused(self, folder: Path) -> None:
        with open_ledger(folder):
            with pytest.raises(DiskError, match="is being built by another run"), open_ledger(folder):
                pass
            # Whoever only looks is not in the way.
            read_ledger(folder)
        with open_ledger(folder) as ledger:
            carry_out(ledger, step())

    def test_it_is_free_again_after_an_error(self, folder: Path) -> None:
        with pytest.raises(KeyboardInterrupt), open_ledger(folder):
            raise KeyboardInterrupt
        with open_ledger(folder):
            pass

    def test_what_is_written_is_whole_or_as_it_was(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_ledger(folder) as ledger:
            carry_out(ledger, step())
        before = (folder / STATE).read_bytes()

        def fail(_: Path, __: Path) -> None:
            raise OSError("no room")

        monkeypatch.setattr(Path, "replace", fail)
        with open_ledger(folder) as ledger, pytest.raises(OSError, match="no room"):
            ledger.begin(step(bits=5))
        assert (folder / STATE).read_bytes() == before
        assert [path.name for path in folder.iterdir() if path.name.endswith(".partial")] == []
