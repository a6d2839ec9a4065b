"""mval weights: untouched artifacts pass in every layout and type, and each mistake is named for what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest

from convert.cli import cli as mconv
from quantize.cli import cli as mquant

TYPES = ("BF16", "Q8_0", "Q4_K_M", "Q3_K_M")
Mutation = Callable[[Path], None]


def run(command, *arguments: object) -> None:  # type: ignore[no-untyped-def]
    result = command(*arguments)
    assert result.code == 0, result.err


@pytest.fixture(scope="module")
def dense4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral of four layers whose query and output matrices are square."""
    folder = tmp_path_factory.mktemp("weights") / "dense"
    return checkpoints.mistral(folder, num_attention_heads=4, num_hidden_layers=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Path]:
    """An artifact of a checkpoint, made once: by type, or "megatron"."""
    folder = tmp_path_factory.mktemp("artifacts")

    def make(source: Path, kind: str) -> Path:
        out = folder / f"{source.name}-{kind}"
        if kind == "megatron":
            arguments = (mconv, ["hf-to-megatron", str(source), str(out)])
        elif kind == "BF16":
            out = out.with_suffix(".gguf")
            arguments = (mconv, ["hf-to-gguf", str(source), str(out), "--outtype", "bf16"])
        else:
            out = folder / f"{source.name}-{kind}.gguf"
            arguments = (mquant, [str(source), "--type", kind, "--output", str(out)])
        if not out.exists():
            arguments[0].main(arguments[1], standalone_mode=False)
        return out

    return make
