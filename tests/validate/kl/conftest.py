"""Small models, a text of theirs, and the bundled example."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from mconv.convert.cli.main import cli as mconv
from mconv.inference.open_model import open_model
from mconv.validate.divergence.lockstep import measure_divergence

from support import tiny_gguf
from support.by_definition import EXAMPLE, LENGTH, write_text


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kl")


@pytest.fixture(scope="session")
def base(folder: Path) -> Path:
    return tiny_gguf.write_noise(folder / "base.gguf")


@pytest.fixture(scope="session")
def rounded(folder: Path) -> Path:
    return tiny_gguf.write_noise(folder / "rounded.gguf", quantization=gguf.GGMLQuantizationType.Q4_0)


@pytest.fixture(scope="session")
def text(folder: Path) -> Path:
    return write_text(folder / "text.txt")


@pytest.fixture(scope="session")
def example(folder: Path) -> Path:
    """The bundled example as a BF16 file."""
    mconv.main(["hf-to-gguf", str(EXAMPLE), str(folder / "example.gguf")], standalone_mode=False)
    return folder / "example.gguf"


@pytest.fixture(scope="session")
def kept(folder: Path, base: Path, rounded: Path, text: Path) -> Path:
    """The log-probabilities of the one model, as `--save-logits` keeps them."""
    with open_model(base, 1) as reference, open_model(rounded, 1) as artifact:
        measure_divergence(reference, [artifact], [text], length=LENGTH, save_logits=folder / "kept.kld")
    return folder / "kept.kld"
