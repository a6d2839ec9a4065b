"""mval weights: what of damage shows in each quantized type, whoever encoded it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mconv.convert.cli.main import cli as mconv
from mconv.convert.containers.gguf import read_gguf
from mconv.convert.layouts import open_checkpoint
from mconv.convert.tensors.block_types import BlockType
from mconv.quantize.cli import cli as mquant
from mconv.quantize.imatrix import read_imatrix
from mconv.validate.findings import failed
from mconv.validate.weights.errors import LIMITS
from mconv.validate.weights.kernels import damaged_blocks, measure
from mconv.validate.weights.verdict import is_sound

from support import mutations
from support.command_line import Command
from support.legacy_imatrix import write_legacy_imatrix
from support.weight_checks import LAYER, Make, compare, decoded, encoded, found


@pytest.fixture(scope="module")
def importance(small: Path, make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An importance matrix, and a file quantized with it."""
    folder = tmp_path_factory.mktemp("importance")
    random = np.random.default_rng(1)
    entries = {
        tensor.name: random.lognormal(sigma=2, size=tensor.shape[-1]).astype(np.float32)
        for tensor in read_gguf(make(small, "BF16")).tensors
        if len(tensor.shape) > 1 and tensor.name.startswith("blk.")
    }
    matrix = write_legacy_imatrix(folder / "imatrix.dat", entries)
    out = folder / "weighed.gguf"
    arguments = [str(small), "--type", "Q4_K_M", "--imatrix", str(matrix), "--output", str(out)]
    mquant.main(arguments, standalone_mode=False)
    return matrix, out


def test_importance_makes_a_file_exact(importance: tuple[Path, Path], small: Path, make: Make) -> None:
    matrix, weighed = read_imatrix(importance[0]), importance[1]
    for artifact in (weighed, make(small, "Q4_K_M")):
        result = compare(artifact, small, matrix=matrix)
        assert (found(result), result.count("exact")) == ([], len(result.tensors))


def test_unknown_importance_leaves_the_errors(importance: tuple[Path, Path], small: Path) -> None:
    result = compare(importance[1], small)
    assert found(result) == [("other_encoder", "weighed.gguf")]
    assert result.findings[0].severity == "note"
    weighed = {row.status for row in result.tensors if row.layer is not None and row.type != "F32"}
    assert (weighed, result.count("different")) == ({"quantized"}, 0)


@pytest.mark.parametrize(("byte", "bit"), [(41, 3), (41, 0), (1, 1), (7, 1), (7, 5)])
def test_a_flipped_bit_shows_without_the_encoder(
    byte: int, bit: int, importance: tuple[Path, Path], small: Path, tmp_path: Path
) -> None:
    artifact = Path(shutil.copy(importance[1], tmp_path))
    mutations.flip_bit(artifact, "blk.1.ffn_up.weight", 5, byte, bit)
    result = compare(artifact, small)
    assert found(result)[0] == ("bit_flip", LAYER + "mlp.up_proj.weight")
    assert "row 5" in result.findings[0].what


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K"])
def test_a_small_factor_shows_in_a_fine_type(kind: str, small: Path, make: Make, tmp_path: Path) -> None:
    artifact = Path(shutil.copy(make(small, kind), tmp_path))
    mutations.change_values(artifact, "blk.1.ffn_up.weight", lambda values: values * 1.01)
    result = compare(artifact, small)
    assert found(result)[0] == ("scaled", LAYER + "mlp.up_proj.weight")
    assert any(f"times 1.0{digits}" in result.findings[0].what for digits in ("09", "10"))


def test_mistakes_show_in_a_type_that_keeps_little(importance: tuple[Path, Path], small: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "little.gguf"
    options = ["--imatrix", importance[0], "--output-tensor-type", "Q8_0", "--token-embedding-type", "Q8_0"]
    mquant.main([str(small), "--type", "IQ3_S", "--output", str(artifact), *map(str, options)], standalone_mode=False)
    assert found(compare(artifact, small)) == []
    mutations.swap(artifact, "blk.0.attn_k.weight", "blk.1.attn_k.weight")
    up, gate = (mutations.stored_rows(artifact, f"blk.1.ffn_{name}.weight") for name in ("up", "gate"))
    up[100:140] = gate[100:140]
    mutations.stored_rows(artifact, "blk.2.ffn_up.weight")[7] = 0
    assert sorted(found(compare(artifact, small))) == [
        ("bit_flip", "model.layers.2.mlp.up_proj.weight"),
        ("different", LAYER + "mlp.up_proj.weight"),
        ("swapped", "model.layers.0.self_attn.k_proj.weight"),
    ]


def test_rows_of_zeros_are_counted(small: Path, make: Make, tmp_path: Path) -> None:
    artifact = Path(shutil.copy(make(small, "Q4_K_M"), tmp_path))
    mutations.stored_rows(artifact, "blk.1.ffn_up.weight")[100:140] = 0
    result = compare(artifact, small)
    assert found(result) == [("different", LAYER + "mlp.up_proj.weight")]
    assert "40 of 512 blocks" in result.findings[0].what
    assert "row 100" in result.findings[0].what


def test_a_detour_through_bfloat16_is_a_warning(tied: Path, make: Make, command: Command, tmp_path: Path) -> None:
    folder, artifact = tmp_path / "rounded", tmp_path / "rounded.gguf"
    assert command(mconv, "gguf-to-hf", make(tied, "BF16"), folder, "--dtype", "bf16").code == 0
    assert command(mconv, "hf-to-gguf", folder, artifact, "--outtype", "f32").code == 0
    result = compare(artifact, tied)
    assert [subject for _, subject in found(result)] == [row.name for row in result.tensors]
    assert {(finding.kind, finding.severity) for finding in result.findings} == {("rounded", "warn")}


@pytest.mark.parametrize("between", ["BF16", "F16"])
def test_a_detour_before_quantizing_is_no_damage(between: str, tied: Path, make: Make, tmp_path: Path) -> None:
    file = make(tied, between)
    kinds = ("Q4_K_M", "Q8_0")
    options = [option for kind in kinds for option in ("--type", kind)]
    mquant.main([str(file), *options, "--output-dir", str(tmp_path)], standalone_mode=False)
    for kind in kinds:
        (artifact,) = tmp_path.glob(f"*-{kind}.gguf")
        result = compare(artifact, tied)
        assert (failed(result.findings), result.count("different")) == ([], 0)
        assert failed(compare(make(tied, kind), file).findings) == []
        mutations.flip_bit(artifact, "blk.1.ffn_up.weight", 5, 9, 6)
        assert found(compare(artifact, tied))[0] == ("bit_flip", LAYER + "mlp.up_proj.weight")


NAMES = [kind for kind in LIMITS if not kind.name.startswith(("IQ1", "IQ2"))]
"""All but those that need importance, or for which ggml computes tables for many seconds."""


def distributions() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    normal = random.standard_normal((12, 2048))
    outliers = np.where(random.random(2048) < 0.01, 20, 1)
    found = {
        "normal": normal,
        "heavy tails": random.standard_t(3, normal.shape),
        "outlier columns": normal * outliers,
        "sparse": np.where(random.random(normal.shape) < 0.5, 0, normal),
    }
    return {name: (0.02 * rows).astype(np.float32) for name, rows in found.items()}


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.name)
def test_what_ggml_writes_is_sound(kind: BlockType) -> None:
    """With importance and without; and the limits are no wider than they need to be."""
    random = np.random.default_rng(6)
    largest = 0.0
    for rows in distributions().values():
        for weights in (None, random.lognormal(sigma=1, size=2048).astype(np.float32)):
            values = decoded(kind, encoded(kind, rows, weights), 2048)
            sums = measure(values, rows)
            largest = max(largest, sums.relative_rmse)
            assert is_sound(kind, sums), sums
            shape = (-1, kind.block_weights)
            assert not damaged_blocks(kind, values.reshape(shape), rows.reshape(shape)).any()
    assert LIMITS[kind].relative_rmse < 3 * largest


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.name)
def test_blocks_of_zeros_or_of_other_weights_are_damaged(kind: BlockType) -> None:
    rows = distributions()["normal"]
    reference, shape = rows[0], (-1, kind.block_weights)
    zeros = np.zeros_like(reference)
    assert damaged_blocks(kind, zeros.reshape(shape), reference.reshape(shape)).all()
    other = decoded(kind, encoded(kind, rows[1:2], None), 2048)
    flags = damaged_blocks(kind, other.reshape(shape), reference.reshape(shape), codes=False)
    # The error of one bit a weight is nearly that of other weights.
    assert flags.mean() > (0.9 if LIMITS[kind].block < 1 or LIMITS[kind].cosine else 0.2)


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_most_flipped_bits_show_against_the_reference_alone(name: str) -> None:
    kind = BlockType[name]
    random = np.random.default_rng(7)
    rows = distributions()["heavy tails"]
    weights = random.lognormal(sigma=2, size=2048).astype(np.float32)
    blocks = encoded(kind, rows, weights).reshape(-1, kind.block_bytes)
    caught = 0
    for _ in range(20):
        damaged = blocks.copy()
        bits = random.integers(0, 8 * kind.block_bytes, len(blocks))
        damaged[np.arange(len(blocks)), bits // 8] ^= (1 << (bits % 8)).astype(np.uint8)
        values = decoded(kind, damaged.reshape(len(rows), -1), 2048).reshape(-1, 256)
        with np.errstate(all="ignore"):
            seen = damaged_blocks(kind, values, rows.reshape(-1, 256)) | ~np.isfinite(values).all(axis=1)
        caught += int(seen.sum())
    assert caught > 0.93 * 20 * len(blocks)


def test_blocks_that_are_other_and_sound_are_no_damage(small: Path, make: Make, tmp_path: Path) -> None:
    """As between builds of ggml for different processors: a few codes are others, each as good."""
    artifact = Path(shutil.copy(make(small, "Q4_K_M"), tmp_path))
    tensor = open_checkpoint(small).tensors[LAYER + "mlp.up_proj.weight"]
    rows = (tensor.read(0, 4).astype(np.uint32) << 16).view(np.float32)
    weights = np.random.default_rng(8).lognormal(sigma=1, size=256).astype(np.float32)
    stored = mutations.stored_rows(artifact, "blk.1.ffn_up.weight")
    other = encoded(BlockType.Q4_K, rows, weights)
    assert (stored[:4] != other).any(axis=1).all()
    stored[:4] = other
    result = compare(artifact, small)
    assert (found(result), result.count("quantized")) == ([], 1)
