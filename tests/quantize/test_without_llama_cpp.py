"""What works without llama-cpp-python: conversions, every type with a kernel, and the check of weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mconv.convert.tensors import encodings
from mconv.convert.tensors.block_types import BlockType
from mconv.quantize import kernels
from mconv.quantize.ggml import dequantize_rows, quantize_rows

from support.paths import ROOT, TINY_MISTRAL

FILE_TYPES = ("Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS", "Q8_0", "Q5_0", "Q5_1", "IQ4_NL", "BF16", "F16")


def run_without(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in a process that has no llama_cpp."""
    code = f"import sys; sys.modules['llama_cpp'] = None; from mconv.{module} import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of every such type."""
    folder = tmp_path_factory.mktemp("made")
    types = [word for name in FILE_TYPES for word in ("--type", name)]
    ended = run_without("quantize.cli", TINY_MISTRAL, *types, "--output-dir", folder)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_the_bytes_are_the_same(made: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mconv.quantize.cli", str(TINY_MISTRAL), "--output-dir", str(tmp_path)]
    command += [word for name in FILE_TYPES for word in ("--type", name)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for path in tmp_path.iterdir():
        assert (made / path.name).read_bytes() == path.read_bytes(), path.name
    assert len(list(tmp_path.iterdir())) == len(list(made.iterdir())) == len(FILE_TYPES)


def test_the_weights_are_proven(made: Path) -> None:
    ended = run_without("validate.cli", "weights", *sorted(made.iterdir()), "--reference", TINY_MISTRAL, "--json")
    assert ended.returncode == 0, ended.stderr
    results = json.loads(ended.stdout)["results"]
    assert len(results) == len(FILE_TYPES)
    for result in results:
        assert result["exact"] == len(result["tensors"]) == 75, result["file"]


def test_a_conversion(tmp_path: Path) -> None:
    ended = run_without("convert.cli.main", "hf-to-gguf", TINY_MISTRAL, tmp_path / "a.gguf")
    assert ended.returncode == 0, ended.stderr


def test_a_type_without_a_kernel_says_what_to_install(tmp_path: Path) -> None:
    ended = run_without("quantize.cli", TINY_MISTRAL, "--type", "Q4_0", "--output-dir", tmp_path)
    assert (ended.returncode, ended.stderr.splitlines()[-2]) == (3, "error: llama-cpp-python is not installed")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(kernels.SUPPORTED))
def test_decoded_values_are_those_of_the_library(name: str) -> None:
    kind = BlockType[name]
    # Any bytes are blocks, if not of any model: every code, every scale, infinite and not a number among them.
    blocks = np.random.default_rng(5).integers(0, 256, (512, kind.row_bytes(512)), np.uint8)
    values = np.empty((512, 512), np.float32)
    dequantize_rows(kind, blocks, values)
    np.testing.assert_array_equal(encodings.decode(kind, blocks), values)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_float_types_are_those_of_the_library(name: str) -> None:
    kind = BlockType[name]
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    bits = np.random.default_rng(6).integers(0, 1 << 32, 1 << 18, np.uint32).view(np.float32)
    # With what lies halfway between two halves, where rounding is decided.
    values = np.concatenate([bits[np.isfinite(bits)], halves, (halves[1:] + halves[:-1]) / 2])[None]
    expected = np.empty((1, kind.row_bytes(values.size)), np.uint8)
    quantize_rows(kind, values, None, expected)
    np.testing.assert_array_equal(encodings.encode_floats(kind, values), expected)
