"""Importance matrices in llama-imatrix's former format."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_legacy_imatrix(path: Path, matrix: dict[str, np.ndarray]) -> Path:
    """The form that llama-imatrix wrote before GGUF: counts, then name, calls and values of each entry."""
    with path.open("wb") as file:
        file.write(np.int32(len(matrix)).tobytes())
        for name, values in matrix.items():
            file.write(np.int32(len(name)).tobytes() + name.encode() + np.int32(1).tobytes())
            file.write(np.int32(values.size).tobytes() + values.tobytes())
    return path
