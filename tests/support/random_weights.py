"""Random weights that are the same on every machine: integers of a counter, turned into floats in exact steps."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_STANDARD_DEVIATION = np.float32(37837.2)
"""Of the sum of four numbers below 65536."""

_SAFETENSORS_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def random_weights(name: str, shape: tuple[int, ...], *, varied: bool = True) -> np.ndarray:
    """The weights of a tensor, float32, which follow from its name and shape alone.

    Vectors lie around one, as norms do. Matrices lie around zero with a deviation of 0.02; where they are `varied`,
    some columns are up to five times as large, as in models that were trained.
    """
    values = _bell(name, shape)
    if len(shape) == 1:
        return 1 + np.float32(0.1) * values
    values *= np.float32(0.02)
    if varied:
        part = _raw(f"{name} columns", shape[-1]).astype(np.float32) / np.float32(1 << 16)
        for _ in range(3):
            part *= part
        values *= 1 + 4 * part
    return values


def _raw(name: str, count: int) -> np.ndarray:
    """Numbers below 65536, uint16[count]."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    # The stream of this generator is part of numpy's promises, unlike the distributions made of it.
    return np.random.Philox(key=key).random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]


def _bell(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A bell around zero with a deviation of one, cut at three and a half."""
    count = int(np.prod(shape))
    raw = _raw(name, 4 * count)
    total = raw[0::4].astype(np.float32)
    for part in range(1, 4):
        total += raw[part::4]
    total -= np.float32(4 * 65535 / 2)
    total /= _STANDARD_DEVIATION
    return total.reshape(shape)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """The stored form of float32 values: "bfloat16" as uint16, "float16" or "float32"."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str) -> None:
    """A safetensors file of tensors in their stored form, as the safetensors package writes it: ordered by name."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        end = offset + tensors[name].nbytes
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name]).data)
