"""Every writer, run on one checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from mconv.convert.containers.gguf import read_gguf

from support.legacy_imatrix import write_legacy_imatrix
from support.random_weights import random_weights

TYPES = ("Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS", "IQ4_NL", "Q8_0", "Q5_0", "Q3_K_M")

Run = Callable[..., object]


def write_everything(source: Path, out: Path, mconv: Run, mquant: Run) -> dict[str, str]:
    """Convert and quantize a Hugging Face folder in every direction.

    Args:
        source: the folder.
        out: an empty folder for all that is written.
        mconv: runs `mconv` with these arguments.
        mquant: runs `mquant`.

    Returns:
        The SHA-256 of every file that was written, by its place below `out`.
    """
    plain, megatron = out / "plain.gguf", out / "megatron"
    mconv("hf-to-gguf", source, plain)
    mconv("hf-to-gguf", source, out / "f32.gguf", "--outtype", "f32")
    mconv("hf-to-gguf", source, out / "q8_0.gguf", "--outtype", "q8_0")
    mconv("hf-to-megatron", source, megatron)
    mconv("hf-to-megatron", source, out / "megatron-f16", "--dtype", "f16")
    mconv("megatron-to-hf", megatron, out / "megatron-to-hf")
    mconv("megatron-to-gguf", megatron, out / "megatron-to-gguf.gguf")
    mconv("gguf-to-hf", plain, out / "gguf-to-hf", "--max-shard-size", "1MB")
    mconv("gguf-to-hf", out / "q8_0.gguf", out / "q8_0-to-hf", "--dtype", "f16")
    mconv("gguf-to-megatron", plain, out / "gguf-to-megatron")
    types = [word for kind in TYPES for word in ("--type", kind)]
    matrix = write_importance(plain, out / "imatrix.dat")
    for name, read in (("hf", source), ("gguf", plain), ("megatron", megatron)):
        mquant(read, *types, "--output-dir", out / f"from-{name}")
        mquant(read, *types, "--imatrix", matrix, "--output-dir", out / f"from-{name}-imatrix")
    files = sorted(path for path in out.rglob("*") if path.is_file() and path != matrix)
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_importance(file: Path, path: Path) -> Path:
    """An importance matrix for the matrices of a GGUF file that llama-imatrix would see."""
    matrix = {}
    for tensor in read_gguf(file).tensors:
        if len(tensor.shape) > 1 and "blk" in tensor.name and "gate_inp" not in tensor.name:
            experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
            matrix[tensor.name] = random_weights(f"{tensor.name} importance", (experts * tensor.shape[-1],)) ** 8
    return write_legacy_imatrix(path, matrix)
