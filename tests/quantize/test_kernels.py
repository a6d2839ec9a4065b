"""Our kernels write the bytes of ggml: over every distribution that breaks quantizers, every source and every shape."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mconv.convert.tensors.block_types import BlockType
from mconv.quantize import ggml, kernels

from support.paths import ROOT

TYPES = sorted(kernels.SUPPORTED)
ROWS, LENGTH = 37, 768  # 111 super-blocks and 888 blocks: no multiple of the lanes of any machine
SENTINEL = 0xA5


def encode(name: str, rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Our bytes; what lies around `out` in memory must stay as it was."""
    row_bytes = BlockType[name].row_bytes(rows.shape[1])
    memory = np.full((len(rows) + 2, row_bytes), SENTINEL, np.uint8)
    kernels.quantize_rows(name, rows, weights, memory[1:-1])
    assert (memory[[0, -1]] == SENTINEL).all()
    return memory[1:-1]


def reference(name: str, rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    out = np.empty((len(rows), BlockType[name].row_bytes(rows.shape[1])), np.uint8)
    ggml.quantize_rows(BlockType[name], rows, weights, out)
    return out


def differing_blocks(name: str, rows: np.ndarray, weights: np.ndarray | None = None) -> int:
    differs = encode(name, rows, weights) != reference(name, widen(rows), weights)
    return int(differs.reshape(-1, BlockType[name].block_bytes).any(axis=1).sum())


def widen(rows: np.ndarray) -> np.ndarray:
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)


def exponents(generator: np.random.Generator, low: float, high: float, run: int) -> np.ndarray:
    """Factors between 10^low and 10^high, one for each `run` elements of a row."""
    return np.repeat(10 ** generator.uniform(low, high, (ROWS, LENGTH // run)), run, axis=1)


def distributions(generator: np.random.Generator) -> dict[str, np.ndarray]:
    normal = generator.standard_normal((ROWS, LENGTH))
    zeros = np.zeros((ROWS, LENGTH))
    outlier = zeros.copy()
    outlier[np.arange(ROWS), generator.integers(0, LENGTH, ROWS)] = 10 * generator.standard_normal(ROWS)
    constant = np.broadcast_to(np.exp(generator.normal(0, 5, (ROWS, 1))), (ROWS, LENGTH))
    some_blocks = np.repeat(generator.random((ROWS, LENGTH // 32)) < 0.4, 32, axis=1)
    any_bits = generator.integers(0, 2**32, (ROWS, LENGTH), np.uint32).view(np.float32)
    found = {
        "normal": 0.02 * normal,
        "heavy tails": generator.standard_cauchy((ROWS, LENGTH)),
        "channel scales": normal * np.exp(generator.normal(0, 3, LENGTH)),
        "row scales": normal * 10 ** generator.uniform(-12, 7, (ROWS, 1)),
        "sub-block scales": normal * exponents(generator, -6, 2, 32),
        "zero": zeros,
        "negative zero": -zeros,
        "constant": constant,
        "negative constant": -constant,
        "one outlier": outlier,
        "outliers": outlier + 0.01 * normal,
        "subnormal": 1e-40 * normal,
        "tiny": normal * exponents(generator, -45, -30, 768),
        "mixed tiny": normal * exponents(generator, -45, -8, 32),
        "below float16": normal * exponents(generator, -9, -4, 32),
        "huge": 1e37 * normal,
        "mixed huge": np.clip(normal * exponents(generator, 3, 38.5, 16), -3.4e38, 3.4e38),
        "negative": -np.abs(normal),
        "positive": np.abs(normal),
        "far from zero": 1 + 1e-3 * normal,
        "far below zero": -1 + 1e-3 * normal,
        "almost constant": -1000 + normal * exponents(generator, -8, 0, 32),
        "zero sub-blocks": np.where(some_blocks, 0, normal),
        "sparse": np.where(generator.random((ROWS, LENGTH)) < 0.9, 0, normal),
        "whole numbers": generator.integers(-3, 4, (ROWS, LENGTH)),
        "ramp": np.broadcast_to(np.linspace(-1, 1, LENGTH), (ROWS, LENGTH)),
        "any bits": np.where(np.isfinite(any_bits), any_bits, 0),
    }
    with np.errstate(under="ignore"):
        return {name: np.ascontiguousarray(rows, np.float32) for name, rows in found.items()}


def importances(generator: np.random.Generator) -> dict[str, np.ndarray | None]:
    uniform = generator.random(LENGTH)
    found = {
        "gamma": generator.gamma(0.5, size=LENGTH),
        "some zero": np.where(generator.random(LENGTH) < 0.5, 0, uniform),
        "zero sub-blocks": np.where(np.repeat(generator.random(LENGTH // 32) < 0.5, 32), 0, uniform),
        "all zero": np.zeros(LENGTH),
        "large spread": np.exp(generator.normal(0, 10, LENGTH)),
        "huge": 1e30 * uniform,
        "tiny": 1e-38 * uniform,
    }
    return {"plain": None} | {name: weights.astype(np.float32) for name, weights in found.items()}


DISTRIBUTIONS = distributions(np.random.default_rng(1))
IMPORTANCES = importances(np.random.default_rng(2))


@pytest.fixture(scope="module", autouse=True)
def prepared() -> None:
    kernels.prepare(TYPES)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_bytes_are_those_of_ggml(name: str, distribution: str) -> None:
    rows = DISTRIBUTIONS[distribution]
    kinds = [None] if not BlockType[name].uses_importance else IMPORTANCES.values()
    assert [differing_blocks(name, rows, weights) for weights in kinds] == [0] * len(kinds)


@pytest.mark.parametrize("name", TYPES)
@settings(derandomize=True, database=None, deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-40, 30),
    spread=st.floats(0, 6),
    offset=st.sampled_from([0, 0, -1, 1, -30, 30, 1000]),
    zeros=st.sampled_from([0, 0, 0.5, 0.97]),
    importance=st.sampled_from([None, 0.1, 2, 8]),
)
def test_bytes_are_those_of_ggml_for_any_mixture(
    name: str, seed: int, exponent: int, spread: float, offset: int, zeros: float, importance: float | None
) -> None:
    generator = np.random.default_rng(seed)
    rows = (generator.standard_normal((ROWS, LENGTH)) + offset) * exponents(generator, -spread, 0, 16)
    rows[generator.random(rows.shape) < zeros] = 0
    rows *= 10.0**exponent
    weights = None
    if importance is not None and BlockType[name].uses_importance:
        weights = np.exp(generator.normal(0, importance, LENGTH)).astype(np.float32)
    assert differing_blocks(name, rows.astype(np.float32), weights) == 0


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("distribution", ["normal", "row scales", "sub-block scales", "zero", "mixed tiny"])
def test_sources_of_16_bits_are_widened_exactly(name: str, distribution: str) -> None:
    rows = DISTRIBUTIONS[distribution]
    brain = (rows.view(np.uint32) >> 16).astype(np.uint16)
    with np.errstate(under="ignore"):
        half = np.clip(rows, -65504, 65504).astype(np.float16)
    weights = IMPORTANCES["gamma"]
    assert [differing_blocks(name, source, weights) for source in (brain, half)] == [0, 0]


def test_every_float16_is_widened_exactly() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    rows = np.sort(every[np.isfinite(every)]).reshape(-1, 256)
    assert [differing_blocks(name, rows) for name in ("Q8_0", "Q6_K")] == [0, 0]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(("count", "blocks"), [(1, 1), (1, 5), (2, 3), (7, 1), (16, 2), (17, 2), (33, 1), (65, 1)])
def test_every_shape_fills_its_rows(name: str, count: int, blocks: int) -> None:
    length = blocks * BlockType[name].block_weights
    generator = np.random.default_rng(count)
    rows = generator.standard_normal((count, length)).astype(np.float32)
    weights = generator.random(length).astype(np.float32)
    assert [differing_blocks(name, rows, given) for given in (None, weights)] == [0, 0]


def test_no_rows_are_no_work() -> None:
    assert encode("Q4_K", np.empty((0, 256), np.float32)).shape == (0, 144)


@pytest.mark.parametrize("name", TYPES)
def test_threads_do_not_disturb_each_other(name: str) -> None:
    sources = [DISTRIBUTIONS[key] for key in ("normal", "sparse", "row scales", "positive")] * 4
    weights = IMPORTANCES["gamma"]
    with ThreadPoolExecutor(4) as pool:
        ours = list(pool.map(lambda rows: encode(name, rows, weights), sources))
    expected = [reference(name, rows, weights) for rows in sources[:4]] * 4
    assert all((a == b).all() for a, b in zip(ours, expected, strict=True))


def test_columns_of_importance_follow_their_row() -> None:
    rows = DISTRIBUTIONS["normal"]
    weights = IMPORTANCES["large spread"]
    assert weights is not None
    alone = np.concatenate([encode("Q4_K", row[None], weights) for row in rows])
    assert (alone == encode("Q4_K", rows, weights)).all()
    assert (alone != encode("Q4_K", rows, weights[::-1].copy())).any()


@pytest.mark.parametrize(
    ("rows", "weights", "out"),
    [
        (np.zeros((2, 256)), None, np.zeros((2, 144), np.uint8)),
        (np.zeros((2, 512), np.float32)[:, ::2], None, np.zeros((2, 144), np.uint8)),
        (np.zeros((2, 255), np.float32), None, np.zeros((2, 144), np.uint8)),
        (np.zeros((2, 256), np.float32), np.zeros(255, np.float32), np.zeros((2, 144), np.uint8)),
        (np.zeros((2, 256), np.float32), np.zeros(256), np.zeros((2, 144), np.uint8)),
        (np.zeros((2, 256), np.float32), None, np.zeros((2, 143), np.uint8)),
        (np.zeros((2, 256), np.float32), None, np.zeros((2, 144), np.int8)),
        (np.zeros((2, 256), np.float32), None, np.zeros((2, 288), np.uint8)[:, ::2]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(rows: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    with pytest.raises(TypeError):
        kernels.quantize_rows("Q4_K", rows, weights, out)


def test_types_without_a_kernel_are_refused() -> None:
    with pytest.raises(KeyError):
        kernels.prepare(["Q3_K"])


def test_steps_between_values_of_iq4_are_the_midpoints() -> None:
    from mconv.quantize.kernels.nonlinear import THRESHOLDS, VALUES

    for low, high, threshold in zip(VALUES[:-1], VALUES[1:], THRESHOLDS, strict=True):
        below = np.nextafter(threshold, np.float32(-np.inf))
        assert below - low < high - below  # ggml's `best_index_int8` still takes the lower value
        assert not threshold - low < high - threshold


def test_no_two_trials_of_iq4_are_two_steps_apart() -> None:
    from mconv.quantize.kernels.nonlinear import THRESHOLDS

    same_sign = [(a, b) for a, b in pairwise(THRESHOLDS) if a * b > 0]
    assert min(max(a / b, b / a) for a, b in same_sign) > 134 / 120


def run_python(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


QUANTIZE = """
import hashlib, numpy as np
from mconv.quantize import kernels
names = []
kernels.prepare(["Q8_0"], names.append)
rows = np.linspace(-3, 5, 4096, dtype=np.float32).reshape(4, 1024)
out = np.zeros((4, 1088), np.uint8)
kernels.quantize_rows("Q8_0", rows, None, out)
print(names, hashlib.sha256(out).hexdigest(), sum(kernels._kernels["Q8_0"].stats.cache_hits.values()))
"""


def expected_output(hits: int) -> str:
    import hashlib

    rows = np.linspace(-3, 5, 4096, dtype=np.float32).reshape(4, 1024)
    return f"['Q8_0'] {hashlib.sha256(reference('Q8_0', rows).tobytes()).hexdigest()} {hits}"


def test_the_second_process_finds_the_compiled_kernel(tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    assert run_python(QUANTIZE, NUMBA_CACHE_DIR=folder) == expected_output(0)
    assert run_python(QUANTIZE, NUMBA_CACHE_DIR=folder) == expected_output(1)


def test_a_cache_folder_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert run_python(QUANTIZE, NUMBA_CACHE_DIR=str(blocked)) == expected_output(0)


@pytest.mark.skipif(sys.platform == "win32", reason="limits a file's size with the POSIX resource module")
def test_a_cache_folder_that_is_full_is_done_without(tmp_path: Path) -> None:
    limit = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
"""
    assert run_python(limit + QUANTIZE, NUMBA_CACHE_DIR=str(tmp_path)) == expected_output(0)
    assert not any(path.suffix == ".nbc" for path in tmp_path.rglob("*"))


def test_importing_the_package_imports_no_compiler() -> None:
    program = "import sys, mconv.quantize.kernels; print(sorted({'numba', 'llvmlite'} & set(sys.modules)))"
    assert run_python(program) == "[]"


def test_no_flag_lets_the_compiler_reorder_or_fuse() -> None:
    """What makes the bytes the same on every machine: each operation stays the IEEE operation that was written."""
    from mconv.quantize.kernels import iq4_nl, jit

    dispatcher: Any = jit._compiled(jit._njit(**jit._OPTIONS)(iq4_nl.kernel))
    code = dispatcher.inspect_llvm(dispatcher.signatures[0])
    operations = re.findall(r"= (f(?:add|sub|mul|div|neg|cmp) .*)", code)
    assert any(operation.startswith("fmul <") for operation in operations)
    flags = re.compile(r"\b(fast|reassoc|contract|arcp|afn|nnan|ninf|nsz)\b")
    assert [operation for operation in operations if flags.search(operation)] == []
    assert "llvm.fma" not in code  # neither fma nor fmuladd
