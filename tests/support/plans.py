"""Plans of small files, without a model behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mconv.convert.engine.outputs import Output
from mconv.convert.engine.plan import Plan, TypedTarget, place_tensors
from mconv.convert.tensors.files import SourceFile
from mconv.convert.tensors.nodes import FileTensor
from mconv.convert.tensors.orders import RotaryInterleaved
from mconv.convert.tensors.rows import Rows, Target

WIDTH, ROWS, TENSORS = 32, 64, 6


def write_source(path: Path, seed: int = 0) -> list[Target]:
    """A file of float32 matrices, and a target for each; every other one has its rows in another order."""
    values = np.random.default_rng(seed).normal(size=(TENSORS, ROWS, WIDTH)).astype(np.float32)
    path.write_bytes(values.tobytes())
    file = SourceFile.at(path)
    size = ROWS * WIDTH * 4
    stored = [FileTensor(f"t{n}", "F32", (ROWS, WIDTH), file, n * size, WIDTH * 4, (0, n)) for n in range(TENSORS)]
    orders = [RotaryInterleaved(4, ROWS // 4) if n % 2 else None for n in range(TENSORS)]
    return [
        Target(f"t{n}", (ROWS, WIDTH), Rows((tensor,), order))
        for n, (tensor, order) in enumerate(zip(stored, orders, strict=True))
    ]


def plan(targets: list[Target], encoding: str, header: bytes = b"header") -> Plan:
    """The targets one after the other."""
    tensors = place_tensors([TypedTarget(target, encoding) for target in targets])
    return Plan(header, tensors, len(header) + sum(tensor.size for tensor in tensors))


def outputs(folder: Path, targets: list[Target], *encodings: str) -> list[Output]:
    """An output for each encoding."""
    return [Output(plan(targets, encoding), folder / f"{encoding}.bin") for encoding in encodings]
