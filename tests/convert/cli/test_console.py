"""What all command lines share: streams, notes, progress, interrupts, exit codes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click
import pytest

from mconv.convert.errors import SourceError
from mconv.convert.reporting import note, progress_bar, warn

from support.command_line import Command


def test_notes_and_warnings_go_to_stderr(command: Command) -> None:
    @click.command()
    def cli() -> None:
        note("left out 3 tensors")
        warn("one does not fit")
        click.echo("data")

    ended = command(cli)
    assert (ended.code, ended.out) == (0, "data\n")
    assert ended.err == "note: left out 3 tensors\nwarning: one does not fit\n"


def test_nobody_hears_what_is_said_without_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    note("left out 3 tensors")
    with progress_bar(10, "file") as bar:
        bar.update(10)
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_went_unheard_is_raised_again(command: Command, tmp_path: Path) -> None:
    """Python swallows what is raised in a destructor."""

    class Swallowing:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    @click.command()
    def cli() -> None:
        with progress_bar(10, "file") as bar:
            bar.update(1)
            swallowing = Swallowing()
            del swallowing
            bar.update(1)
        (tmp_path / "done").write_text("x")

    ended = command(cli)
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == "interrupted"
    assert not (tmp_path / "done").exists()


FULL = OSError(28, "No space left on device", "/x")
NO_SPACE = ["error: /x: No space left on device", "hint: free some space, or choose another output folder"]
NO_MEMORY = ["error: out of memory", "hint: run with fewer --threads, or on a machine with more memory"]


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (SourceError("a\nb", "c"), 3, ["error: a b", "hint: c"]),
        (FULL, 4, NO_SPACE),
        (MemoryError(), 4, NO_MEMORY),
        (KeyboardInterrupt(), 130, ["", "interrupted"]),
    ],
)
def test_an_error_is_two_lines_and_a_code(error: BaseException, code: int, lines: list[str], command: Command) -> None:
    @click.command()
    def cli() -> None:
        raise error

    ended = command(cli)
    assert (ended.code, ended.out, ended.err.splitlines()) == (code, "", lines)
