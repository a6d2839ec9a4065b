"""A toy layout over a toy encoding of three planes, registered from outside: a checkpoint goes there and comes back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mconv
from mconv.convert import layouts
from mconv.convert.engine.plan import FolderPlan, Plan, TypedTarget, place_tensors
from mconv.convert.families import family_of_class
from mconv.convert.layouts import register_layout
from mconv.convert.layouts.layout import Layout, LayoutOption, Planned
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.tensors import encodings
from mconv.convert.tensors.encodings import DecodedTensor, RowBlock, register_encoding, widen
from mconv.convert.tensors.files import SourceFile
from mconv.convert.tensors.nodes import FileTensor, Tensor, row_count, row_length
from mconv.convert.tensors.rows import Rows, Target
from mconv.convert.tokenizer import read_vocabulary

from support.paths import TINY_MISTRAL


class Bytes:
    """Float32 values taken apart: the highest byte of each, the next one, and the two lowest."""

    name = "TOY"

    def plane_row_bytes(self, row_weights: int) -> tuple[int, ...]:
        return row_weights, row_weights, 2 * row_weights

    def encode(self, block: RowBlock, importance: np.ndarray | None = None) -> tuple[np.ndarray, ...]:  # noqa: ARG002
        values = np.ascontiguousarray(widen(block.floats)).view(np.uint8).reshape(len(block.floats), -1, 4)
        parts = (values[:, :, 3], values[:, :, 2], values[:, :, :2].reshape(len(values), -1))
        return tuple(map(np.ascontiguousarray, parts))

    def decode(self, planes: Sequence[np.ndarray], row_weights: int) -> np.ndarray:
        high, middle, low = planes[0], planes[1], planes[2].reshape(len(planes[0]), row_weights, 2)
        return np.dstack([low, middle, high]).reshape(len(high), -1).view(np.float32)


def plan(checkpoint: Checkpoint, *, prefix: str) -> Planned:
    targets = [Target(prefix + name, part.shape, Rows((part,))) for name, part in checkpoint.tensors.items()]
    tensors = place_tensors([TypedTarget(target, "TOY") for target in targets])
    listed = {tensor.target.name: [tensor.target.shape, [p.offset for p in tensor.planes]] for tensor in tensors}
    files = {**checkpoint.sidecars(), "toy.json": json.dumps({"prefix": prefix, "tensors": listed}).encode()}
    return Planned(FolderPlan({"toy.bin": Plan(b"", tensors, sum(tensor.size for tensor in tensors))}, files), "TOY")


def is_toy(path: Path) -> bool:
    return (path / "toy.json").is_file()


def open_toy(path: Path) -> Checkpoint:
    index, config = (json.loads((path / name).read_text()) for name in ("toy.json", "config.json"))
    spec, file = family_of_class(config["architectures"][0]).read_config(config), SourceFile.at(path / "toy.bin")

    def tensor(stored: str, place: int, shape: tuple[int, ...], offsets: list[int]) -> Tensor:
        name, rows = stored.removeprefix(index["prefix"]), row_count(shape)
        places = zip(offsets, Bytes().plane_row_bytes(row_length(shape)), strict=True)
        planes = [FileTensor(name, "bytes", (rows, size), file, at, size, (0, 0)) for at, size in places]
        return DecodedTensor(name, shape, "TOY", tuple(planes), (0, place))

    listed = enumerate(index["tensors"].items())
    tensors = [tensor(name, place, tuple(shape), offsets) for place, (name, (shape, offsets)) in listed]
    return Checkpoint(
        layout="toy", path=path, spec=spec, tensors={each.name: each for each in tensors}, files=(file.path,),
        vocabulary=lambda: read_vocabulary(path, spec.vocab),
        sidecars=lambda: {each.name: each.read_bytes() for each in path.iterdir() if each.suffix != ".bin"},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_registered", {})
    monkeypatch.setattr(encodings, "_encodings", dict(encodings._encodings))
    register_encoding(Bytes())
    options = (LayoutOption("prefix", "What all names begin with.", default="toy."),)
    register_layout(Layout("toy", "a toy", "folder", is_toy, open_toy, plan, write_options=options))


def convert(source: Path, layout: str, out: Path, **options: Any) -> Path:
    mconv.run(mconv.plan(source, layout, out, **options))
    return out


def test_a_checkpoint_goes_through_a_layout_and_an_encoding_from_outside(tmp_path: Path) -> None:
    toy = convert(TINY_MISTRAL, "toy", tmp_path / "toy", prefix="t.")
    assert mconv.open(toy).layout == "toy"
    back = convert(toy, "hf", tmp_path / "back", dtype="bf16")
    assert (back / "model.safetensors").read_bytes() == (TINY_MISTRAL / "model.safetensors").read_bytes()
    assert convert(toy, "gguf", tmp_path / "a.gguf", outtype="bf16").stat().st_size > 1_000_000
