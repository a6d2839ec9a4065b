"""The row ranges that a plan is carried out in: small enough to bound memory, and to lose little when killed."""

from __future__ import annotations

from collections.abc import Iterator

from mconv.convert.tensors.nodes import row_length
from mconv.convert.tensors.rows import Target

# Weights in a chunk: large enough that a call's overhead vanishes, small enough that every core has work to the end and
# that a thread's buffers stay in a few megabytes.
CHUNK_WEIGHTS = 1 << 20


def cut(target: Target, *, whole: bool = False) -> Iterator[tuple[int, int]]:
    """The row ranges of a target's jobs, in order. They depend only on the target.

    Args:
        whole: a single range: the bytes around the data depend on all of them.

    Example:
        A matrix of 4096 x 4096 weights is cut into 16 ranges of 256 rows.
    """
    rows = target.rows.count
    if whole:
        yield 0, rows
        return
    # Cut a stack of experts between experts: each expert has its own importance values.
    matrix_rows = target.shape[-2] if len(target.shape) > 2 else rows
    step = chunk_rows(target)
    for matrix in range(0, rows, matrix_rows):
        for start in range(matrix, matrix + matrix_rows, step):
            yield start, min(start + step, matrix + matrix_rows)


def chunk_rows(target: Target) -> int:
    """How many rows of a target are read at once."""
    return max(1, CHUNK_WEIGHTS // row_length(target.shape))
