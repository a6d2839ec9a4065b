"""A small checkpoint, and its artifacts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from mconv.convert.cli.main import cli as mconv
from mconv.quantize.cli import cli as mquant

from support import checkpoints
from support.weight_checks import Make


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral of four layers whose query and output matrices are square."""
    folder = tmp_path_factory.mktemp("weights") / "small"
    return checkpoints.mistral(folder, num_attention_heads=4, num_hidden_layers=4)


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """An artifact of a checkpoint, made by mconv or mquant, each once: by type, or "megatron"."""
    folder = tmp_path_factory.mktemp("artifacts")

    @cache
    def made(source: Path, kind: str) -> Path:
        if kind == "megatron":
            out = folder / f"{source.name}-megatron"
            mconv.main(["hf-to-megatron", str(source), str(out)], standalone_mode=False)
            return out
        out = folder / f"{source.name}-{kind}.gguf"
        if kind in ("BF16", "F16", "F32"):
            arguments = ["hf-to-gguf", str(source), str(out), "--outtype", kind.lower()]
            mconv.main(arguments, standalone_mode=False)
        else:
            mquant.main([str(source), "--type", kind, "--output", str(out)], standalone_mode=False)
        return out

    return made
