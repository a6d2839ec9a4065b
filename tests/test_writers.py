"""The same input and options give the same bytes, release after release: every file of every writer, by its sum."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mconv.convert.cli.main import cli as mconv
from mconv.quantize.cli import cli as mquant

from support import checkpoints
from support.command_line import Command
from support.golden import Golden
from support.paths import TINY_MISTRAL
from support.writers import write_everything

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "intermediate_size": 256}
SOURCES: dict[str, Callable[[Path], Path]] = {
    # Without its card, whose words may change.
    "tiny-mistral": lambda folder: Path(
        shutil.copytree(TINY_MISTRAL, folder / "tiny-mistral", ignore=shutil.ignore_patterns("README.md"))
    ),
    "odd": lambda folder: checkpoints.mistral(
        folder / "odd", **{**SMALL, "hidden_size": 288, "intermediate_size": 416, "head_dim": 48}
    ),
    "experts": lambda folder: checkpoints.mixtral(folder / "experts", **SMALL, num_local_experts=4),
    "tied": lambda folder: checkpoints.llama(
        folder / "tied", dtype="float32", tie_word_embeddings=True, attention_bias=True, **SMALL
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_writer_writes_the_bytes_that_it_wrote_before(
    name: str, command: Command, golden: Golden, tmp_path: Path
) -> None:
    source = SOURCES[name](tmp_path)
    (tmp_path / "out").mkdir()

    def run_mconv(*arguments: object) -> None:
        ended = command(mconv, *arguments)
        assert ended.code == 0, ended.err

    def run_mquant(*arguments: object) -> None:
        ended = command(mquant, *arguments)
        assert ended.code == 0, ended.err

    written = write_everything(source, tmp_path / "out", run_mconv, run_mquant)
    before = golden(lambda: written, source)
    assert written.keys() == before.keys()
    assert [file for file in written if written[file] != before[file]] == []
