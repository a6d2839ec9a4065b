"""Importance matrices in llama-imatrix's present format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFWriter


def write_gguf_imatrix(
    path: Path,
    sums: Mapping[str, np.ndarray],
    counts: Mapping[str, np.ndarray],
    datasets: tuple[str, ...] = ("wiki.train.raw",),
    chunks: int | None = 3,
) -> Path:
    """As llama-imatrix writes it."""
    writer = GGUFWriter(path, "none")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(datasets))
    if chunks is not None:
        writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values)
    for name, values in counts.items():
        writer.add_tensor(f"{name}.counts", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
