"""Fixtures: checkpoints built once a session, the command lines, and llama.cpp's own converter where its source is at
hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from mconv.convert.cli.console import run_command

from support import checkpoints, releases
from support.command_line import Result

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
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
    """A Mistral with heads * head_dim unlike hidden, bfloat16, SentencePiece, in four shards."""
    return checkpoints.mistral(tmp_path_factory.mktemp("models") / "dense", max_shard_size="10MB")


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in float32 whose output matrix is its embedding."""
    folder = tmp_path_factory.mktemp("models") / "tied"
    return checkpoints.llama(folder, dtype=checkpoints.torch.float32, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral of eight experts."""
    return checkpoints.mixtral(tmp_path_factory.mktemp("models") / "experts", num_hidden_layers=2)


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral whose rows are not whole super-blocks."""
    folder = tmp_path_factory.mktemp("models") / "odd"
    return checkpoints.mistral(folder, hidden_size=288, intermediate_size=416, head_dim=48, num_hidden_layers=3)


@pytest.fixture(scope="session")
def mistral3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral Small 3.1 in small: text model and vision tower."""
    return checkpoints.mistral3(tmp_path_factory.mktemp("models") / "mistral3")


@pytest.fixture(scope="session")
def ministral3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Ministral 3 in small: YaRN, scaled queries, tied, tekken.json alone."""
    return checkpoints.ministral3(tmp_path_factory.mktemp("models") / "ministral3")


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a release of the bundled example that is built and checked beside it. Not to be changed."""
    recipe = releases.write_recipe(tmp_path_factory.mktemp("released") / "recipe.toml")
    for step in ("build", "check"):
        ended = releases.mrelease(step, recipe)
        assert ended.returncode == 0, ended.stderr
    return recipe


@pytest.fixture(scope="session")
def llama_cpp_source() -> Path:
    """llama.cpp's source tree, for tests that run its own converter."""
    found = os.environ.get("MCONV_LLAMA_CPP")
    if not found:
        pytest.skip("MCONV_LLAMA_CPP does not name llama.cpp's source (make test sets it)")
    return Path(found)


@pytest.fixture(scope="session")
def oracle(llama_cpp_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Path]:
    """Convert with llama.cpp's own convert_hf_to_gguf.py; each conversion runs once a session."""
    folder = tmp_path_factory.mktemp("oracle")

    def convert(checkpoint: Path, outtype: str) -> Path:
        out = folder / f"{checkpoint.name}-{outtype}.gguf"
        if not out.exists():
            script = llama_cpp_source / "convert_hf_to_gguf.py"
            arguments = [sys.executable, script, checkpoint, "--outfile", out, "--outtype", outtype]
            subprocess.run(arguments, check=True, capture_output=True)
        return out

    return convert
