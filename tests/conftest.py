"""Fixtures: checkpoints built once a session, the command lines, and what llama.cpp's own tools make of the same input.

Tests marked `oracle` run such a tool, and wait for `--oracles` (`make oracles`); so do the questions of the `golden`
fixture, which is answered with what is recorded otherwise.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from mconv.convert.cli.console import run_command
from mconv.inference.amx import use_extra_buffers

from support import checkpoints, releases
from support.command_line import Command, Oracle, Result
from support.golden import Golden
from support.shared import built_once

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("oracles", "other programs that ours is held against")
    group.addoption("--oracles", action="store_true", help="run the tests that need them, and no others")
    group.addoption("--record-golden", action="store_true", help="and record what they say in tests/golden")


def _asks_oracles(config: pytest.Config) -> bool:
    return bool(config.getoption("--oracles") or config.getoption("--record-golden"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what needs other programs, or what needs none."""

    def needs_them(item: pytest.Item) -> bool:
        return item.get_closest_marker("oracle") is not None

    def asks_them(item: pytest.Item) -> bool:
        return needs_them(item) or "golden" in getattr(item, "fixturenames", ())

    chosen = [item for item in items if (asks_them(item) if _asks_oracles(config) else not needs_them(item))]
    if len(chosen) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """What other programs say, recorded or asked."""
    config = request.config
    module = Path(str(request.path)).stem.removeprefix("test_")
    record = bool(config.getoption("--record-golden"))
    return Golden(module, request.node.name, run_peers=_asks_oracles(config), record=record)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command line in this process, as its console script would."""

    def run(cli: click.Command, *arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_command(cli)
        captured = capsys.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral with heads * head_dim unlike hidden, bfloat16, SentencePiece, in three shards."""
    return built_once(tmp_path_factory, "dense", lambda path: checkpoints.mistral(path, max_shard_size=5_000_000))


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in float32 whose output matrix is its embedding, with a large vocabulary."""
    options: dict[str, Any] = {"dtype": "float32", "vocab_size": checkpoints.LARGE, "tie_word_embeddings": True}
    return built_once(tmp_path_factory, "tied", lambda path: checkpoints.llama(path, **options))


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral of eight experts."""
    return built_once(tmp_path_factory, "experts", lambda path: checkpoints.mixtral(path, num_hidden_layers=2))


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral whose rows are not whole super-blocks."""
    shape: dict[str, Any] = {"hidden_size": 288, "intermediate_size": 416, "head_dim": 48, "num_hidden_layers": 3}
    return built_once(tmp_path_factory, "odd", lambda path: checkpoints.mistral(path, **shape))


@pytest.fixture(scope="session")
def mistral3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral Small 3.1 in small: text model and vision tower."""
    return built_once(tmp_path_factory, "mistral3", checkpoints.mistral3)


@pytest.fixture(scope="session")
def ministral3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Ministral 3 in small: YaRN, scaled queries, tied, tekken.json alone."""
    return built_once(tmp_path_factory, "ministral3", checkpoints.ministral3)


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a release of the bundled example that is built and checked beside it. Not to be changed."""

    def release(folder: Path) -> None:
        folder.mkdir()
        recipe = releases.write_recipe(folder / "recipe.toml")
        for step in ("build", "check"):
            ended = releases.mrelease(step, recipe)
            assert ended.returncode == 0, ended.stderr

    return built_once(tmp_path_factory, "released", release) / "recipe.toml"


@pytest.fixture(scope="session")
def llama_cpp_source() -> Path:
    """llama.cpp's source tree, whose own tools some tests run."""
    found = os.environ.get("MCONV_LLAMA_CPP")
    if not found:
        pytest.fail("MCONV_LLAMA_CPP does not name llama.cpp's source (make test and make oracles set it)")
    return Path(found)


@pytest.fixture(scope="session")
def llama_perplexity() -> list[str]:
    """The beginning of a command line of llama-perplexity, built from the same source."""
    found = os.environ.get("MCONV_LLAMA_PERPLEXITY")
    if not found:
        pytest.fail("MCONV_LLAMA_PERPLEXITY does not name a llama-perplexity (make oracles builds one and sets it)")
    return [found] if use_extra_buffers() else [found, "--no-repack"]


@pytest.fixture(scope="session")
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """Convert with llama.cpp's own convert_hf_to_gguf.py; each conversion runs once a session."""
    folder = tmp_path_factory.mktemp("oracle")

    def convert(checkpoint: Path, outtype: str) -> Path:
        out = folder / f"{checkpoint.name}-{outtype}.gguf"
        if not out.exists():
            script = request.getfixturevalue("llama_cpp_source") / "convert_hf_to_gguf.py"
            arguments = [sys.executable, script, checkpoint, "--outfile", out, "--outtype", outtype]
            subprocess.run(arguments, check=True, capture_output=True)
        return out

    return convert
