"""Runs: what they write, what they leave when they are killed or interrupted, and how the next one goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from mconv.convert.engine.journal import Done, Entry, journal_path, read_journal, write_journal
from mconv.convert.engine.local import LocalExecutor
from mconv.convert.engine.outputs import Output, check_outputs
from mconv.convert.engine.run import Progress, run
from mconv.convert.errors import DiskError, SourceError
from mconv.convert.tensors.rows import Target

from support import plans
from support.processes import in_child

_T = TypeVar("_T")
ENCODINGS = ("F16", "Q8_0", "F32")


class Stopping:
    """One thread that does some tasks, and then does something else.

    Args:
        tasks: how many it does before.
        act: what it does then.
        outputs: their journals are to say before that what is done.
    """

    def __init__(self, tasks: int, act: Callable[[], object], outputs: Sequence[Output] = ()) -> None:
        self.tasks, self.act, self.outputs = tasks, act, outputs
        self.done = 0

    def carry_out(self, work: Callable[[_T], object], tasks: Iterable[_T]) -> Iterator[_T]:
        for task in tasks:
            if self.done == self.tasks:
                while any(self._written(output) < self.done for output in self.outputs):
                    time.sleep(0.01)
                self.act()
            work(task)
            self.done += 1
            yield task

    def _written(self, output: Output) -> int:
        entry = read_journal(journal_path(output.partial))
        return len(entry.done) if entry else 0


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(autouse=True)
def _many_jobs_and_a_quick_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mconv.convert.engine.jobs.CHUNK_WEIGHTS", 8 * plans.WIDTH)
    monkeypatch.setattr("mconv.convert.engine.keeper._SECONDS", 0.01)


@pytest.fixture
def targets(tmp_path: Path) -> list[Target]:
    return plans.write_source(tmp_path / "source")


@pytest.fixture
def whole(tmp_path: Path, targets: list[Target]) -> dict[str, bytes]:
    """What a run that nothing stops writes."""
    folder = tmp_path / "whole"
    folder.mkdir()
    run(plans.outputs(folder, targets, *ENCODINGS))
    return contents(folder)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


TASKS = plans.TENSORS * plans.ROWS // 8


def test_rows_are_encoded_at_their_places(whole: dict[str, bytes], tmp_path: Path) -> None:
    source = np.fromfile(tmp_path / "source", np.float32).reshape(plans.TENSORS, plans.ROWS, plans.WIDTH)
    written = np.frombuffer(whole["F32.bin"][6:], np.float32).reshape(source.shape)
    assert whole["F32.bin"][:6] == b"header"
    assert (written[::2] == source[::2]).all()
    assert (np.sort(written[1], axis=0) == np.sort(source[1], axis=0)).all()
    assert not (written[1] == source[1]).all()
    assert sorted(whole) == sorted(f"{name}.bin" for name in ENCODINGS)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_bytes_are_the_same_whatever_the_threads(
    threads: int, targets: list[Target], whole: dict[str, bytes], out: Path
) -> None:
    run(plans.outputs(out, targets, *ENCODINGS), executor=LocalExecutor(threads))
    assert contents(out) == whole


@pytest.mark.parametrize("tasks", [1, 5, TASKS // 2, TASKS - 1])
def test_a_killed_run_goes_on(tasks: int, targets: list[Target], whole: dict[str, bytes], out: Path) -> None:
    outputs = plans.outputs(out, targets, *ENCODINGS)
    assert in_child(lambda: run(outputs, executor=Stopping(tasks, killed, outputs))) == -signal.SIGKILL
    assert {path.suffix for path in out.iterdir()} == {".partial", ".journal"}
    counting = Stopping(-1, lambda: None)
    told: list[Progress] = []
    check_outputs(outputs, [], overwrite=False)
    ended = run(outputs, executor=counting, on_progress=told.append)
    assert contents(out) == whole
    assert counting.done == TASKS - tasks
    assert ended == told[-1]
    assert told[0].done == told[0].resumed == ended.resumed > 0
    assert ended.done == ended.total == sum(output.plan.size - 6 for output in outputs)
    assert ended.resumed * TASKS == ended.total * tasks


def test_fewer_outputs_go_on_from_what_there_is(targets: list[Target], whole: dict[str, bytes], out: Path) -> None:
    """Each output has a journal of its own."""
    outputs = plans.outputs(out, targets, *ENCODINGS)
    assert in_child(lambda: run(outputs, executor=Stopping(9, killed, outputs))) != 0
    counting = Stopping(-1, lambda: None)
    run(plans.outputs(out, targets, "Q8_0"), executor=counting)
    assert (out / "Q8_0.bin").read_bytes() == whole["Q8_0.bin"]
    assert counting.done == TASKS - 9
    run(plans.outputs(out, targets, "F16", "F32"), executor=counting)
    assert contents(out) == whole


def test_a_run_that_is_killed_while_it_gives_names_goes_on(
    targets: list[Target], whole: dict[str, bytes], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mconv.convert.engine import outputs as module

    outputs, give_name = plans.outputs(out, targets, *ENCODINGS), module.give_name

    def dies(handle: int, partial: Path, path: Path, *, overwrite: bool) -> None:
        if path.name == "Q8_0.bin":
            killed()
        give_name(handle, partial, path, overwrite=overwrite)

    with monkeypatch.context() as patch:
        patch.setattr(module, "give_name", dies)
        assert in_child(lambda: run(outputs)) == -signal.SIGKILL
    assert (out / "F16.bin").exists()
    assert not (out / "Q8_0.bin").exists()
    check_outputs(outputs, [], overwrite=False)
    counting = Stopping(-1, lambda: None)
    ended = run(outputs, executor=counting)
    assert contents(out) == whole
    assert counting.done == 0
    assert ended.resumed == ended.total
    with pytest.raises(DiskError, match="exists already"):
        check_outputs(outputs, [], overwrite=False)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing(targets: list[Target], out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(plans.outputs(out, targets, *ENCODINGS), executor=Stopping(5, interrupt))
    assert list(out.iterdir()) == []


def test_an_interrupt_leaves_what_is_wanted(targets: list[Target], whole: dict[str, bytes], out: Path) -> None:
    outputs = plans.outputs(out, targets, *ENCODINGS)
    with pytest.raises(KeyboardInterrupt):
        run(outputs, executor=Stopping(5, interrupt), keep_partial=True)
    counting = Stopping(-1, lambda: None)
    assert run(outputs, executor=counting).resumed > 0
    assert counting.done == TASKS - 5
    assert contents(out) == whole


def test_any_other_error_leaves_nothing(targets: list[Target], out: Path) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    outputs = plans.outputs(out, targets, *ENCODINGS)
    with pytest.raises(OSError, match="No space"):
        run(outputs, executor=Stopping(5, fail), keep_partial=True)
    assert list(out.iterdir()) == []


def another_source(tmp_path: Path, outputs: list[Output]) -> list[Output]:
    return plans.outputs(outputs[0].path.parent, plans.write_source(tmp_path / "source", seed=1), *ENCODINGS)


def touched_source(tmp_path: Path, outputs: list[Output]) -> list[Output]:
    os.utime(tmp_path / "source")
    return plans.outputs(outputs[0].path.parent, plans.write_source(tmp_path / "source"), *ENCODINGS)


def another_header(_: Path, outputs: list[Output]) -> list[Output]:
    targets = [tensor.target for tensor in outputs[0].plan.tensors]
    return [
        Output(plans.plan(targets, encoding, b"HEADER"), output.path)
        for output, encoding in zip(outputs, ENCODINGS, strict=True)
    ]


def damaged_journals(_: Path, outputs: list[Output]) -> list[Output]:
    for output in outputs:
        path = journal_path(output.partial)
        path.write_bytes(path.read_bytes()[:-1])
    return outputs


def another_file(_: Path, outputs: list[Output]) -> list[Output]:
    for output in outputs:
        data = output.partial.read_bytes()
        output.partial.rename(output.path.with_suffix(".moved"))
        output.partial.write_bytes(data)
        output.path.with_suffix(".moved").unlink()
    return outputs


def cut_off(_: Path, outputs: list[Output]) -> list[Output]:
    for output in outputs:
        os.truncate(output.partial, output.plan.size // 2)
    return outputs


def journal_of_another_run(_: Path, outputs: list[Output]) -> list[Output]:
    """All done, it says, but it speaks of another plan."""
    for output in outputs:
        done = Done(output.plan.job_count, b"\xff" * (output.plan.job_count // 8))
        inode = output.partial.stat().st_ino
        write_journal(journal_path(output.partial), Entry("0" * 64, done, inode))
    return outputs


@pytest.mark.parametrize(
    "change",
    [
        another_source, touched_source, another_header, damaged_journals, another_file, cut_off, journal_of_another_run,
    ],
)  # fmt: skip
def test_what_cannot_be_continued_starts_anew(change: Any, targets: list[Target], out: Path, tmp_path: Path) -> None:
    outputs = plans.outputs(out, targets, *ENCODINGS)
    assert in_child(lambda: run(outputs, executor=Stopping(20, killed, outputs))) == -signal.SIGKILL
    outputs = change(tmp_path, outputs)
    # Whatever was written before must not shine through.
    for output in outputs:
        with output.partial.open("r+b") as file:
            file.write(b"\xee" * output.partial.stat().st_size)
    counting = Stopping(-1, lambda: None)
    assert run(outputs, executor=counting).resumed == 0
    assert counting.done == TASKS
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    run([Output(output.plan, fresh / output.path.name) for output in outputs])
    assert contents(out) == contents(fresh)


def test_a_source_that_changes_during_the_run_is_an_error(targets: list[Target], out: Path, tmp_path: Path) -> None:
    def overwrite() -> None:
        with (tmp_path / "source").open("r+b") as file:
            file.write(bytes(100))

    with pytest.raises(SourceError, match="source changed while it was read"):
        run(plans.outputs(out, targets, *ENCODINGS), executor=Stopping(5, overwrite))
    assert list(out.iterdir()) == []


def test_a_file_that_takes_the_place_of_the_partial_one_is_not_renamed(targets: list[Target], out: Path) -> None:
    def replace() -> None:
        (out / "F16.bin.partial").unlink()
        (out / "F16.bin.partial").write_bytes(b"abc")

    with pytest.raises(DiskError, match="another process replaced it"):
        run(plans.outputs(out, targets, "F16"), executor=Stopping(5, replace))
    # It is not ours to remove either.
    assert contents(out)["F16.bin.partial"] == b"abc"
    assert not (out / "F16.bin").exists()


def test_a_file_that_was_made_meanwhile_is_not_replaced(targets: list[Target], out: Path) -> None:
    outputs = plans.outputs(out, targets, "F16")
    check_outputs(outputs, [], overwrite=False)
    with pytest.raises(DiskError, match="created by another process during the run"):
        run(outputs, executor=Stopping(5, lambda: (out / "F16.bin").write_text("mine")))
    assert contents(out) == {"F16.bin": b"mine"}
    assert run(outputs, overwrite=True).done > 0
    assert (out / "F16.bin").stat().st_size == outputs[0].plan.size


def test_two_runs_at_once_are_refused(targets: list[Target], out: Path) -> None:
    outputs = plans.outputs(out, targets, "F16")

    def run_again() -> None:
        with pytest.raises(DiskError, match="being written by another run"):
            run(outputs)

    run(outputs, executor=Stopping(5, run_again))
    assert [path.name for path in out.iterdir()] == ["F16.bin"]


def test_only_what_is_missing_needs_room(targets: list[Target], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = plans.outputs(out, targets, "F32")
    assert in_child(lambda: run(outputs, executor=Stopping(TASKS - 1, killed, outputs))) == -signal.SIGKILL

    class Usage:
        free = outputs[0].plan.size // 2

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    check_outputs(outputs, [], overwrite=False)
    (out / "F32.bin.partial").unlink()
    with pytest.raises(DiskError, match="not enough space"):
        check_outputs(outputs, [], overwrite=False)


def test_a_failed_sync_ends_the_run(targets: list[Target], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system says only once that data was lost."""

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fdatasync", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        run(plans.outputs(out, targets, "F16"), executor=Stopping(5, lambda: time.sleep(0.5)))
    assert caught.value.filename == str(out / "F16.bin")
    assert list(out.iterdir()) == []


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many a checkpoint has."""
    import resource

    monkeypatch.setattr("mconv.convert.tensors.files._MOST_OPEN", 8)
    many = [target for number in range(40) for target in plans.write_source(tmp_path / f"source-{number}")]
    renamed = [Target(f"{number}", target.shape, target.rows) for number, target in enumerate(many)]
    outputs = plans.outputs(tmp_path, renamed, "F32")

    def few() -> None:
        limit = len(list(Path("/proc/self/fd").iterdir())) + 16
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        run(outputs, executor=LocalExecutor(2))

    assert in_child(few) == 0
    assert (tmp_path / "F32.bin").stat().st_size == outputs[0].plan.size


def test_the_journal_says_nothing_that_is_not_written(targets: list[Target], out: Path) -> None:
    outputs = plans.outputs(out, targets, "F32")
    assert in_child(lambda: run(outputs, executor=Stopping(17, killed, outputs))) == -signal.SIGKILL
    entry = read_journal(journal_path(outputs[0].partial))
    assert entry is not None
    written = np.frombuffer(outputs[0].partial.read_bytes()[6:], np.float32).reshape(-1, 8 * plans.WIDTH)
    for job in outputs[0].plan.jobs():
        assert (job.number in entry.done) <= bool(written[job.number].all())
    assert len(entry.done) == 17
