"""What the tests of mval weights have in common."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mconv.convert.tensors.block_types import BlockType
from mconv.quantize import ggml
from mconv.validate.subject import Subject
from mconv.validate.weights.compare import compare_weights
from mconv.validate.weights.result import WeightsResult

Make = Callable[[Path, str], Path]
Mutation = Callable[[Path], object]

LAYER = "model.layers.1."
EXPERT = "model.layers.0.block_sparse_moe.experts."


def compare(artifact: Path, reference: Path, **options: Any) -> WeightsResult:
    return compare_weights(Subject(artifact), Subject(reference), **options)


def found(result: WeightsResult) -> list[tuple[str, str]]:
    """Kind and subject of each finding."""
    return [(finding.kind, finding.subject) for finding in result.findings]


def statuses(result: WeightsResult) -> set[tuple[str, str]]:
    return {(tensor.type, tensor.status) for tensor in result.tensors}


def spoil(tensors: dict) -> None:
    tensors[LAYER + "mlp.down_proj.weight"][7, 9] = float("inf")


def edit_config(folder: Path, **members: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


def encoded(kind: BlockType, rows: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    blocks = np.empty((len(rows), kind.row_bytes(rows.shape[1])), np.uint8)
    ggml.quantize_rows(kind, rows, weights, blocks)
    return blocks


def decoded(kind: BlockType, blocks: np.ndarray, width: int) -> np.ndarray:
    values = np.empty((len(blocks), width), np.float32)
    ggml.dequantize_rows(kind, blocks, values)
    return values
