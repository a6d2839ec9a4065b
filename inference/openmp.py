"""Configure how GNU OpenMP's threads wait for each other, which is fixed when a library that uses it is loaded."""

from __future__ import annotations

import os

SPIN_COUNT = 10_000  # about 0.1 ms: longer than a step between two barriers, shorter than a scheduler's time slice


def spin_briefly() -> None:
    """Make waiting threads sleep soon, unless the user configured GNU OpenMP. Call before loading llama.cpp or torch.

    By default they spin for milliseconds. If the machine runs other processes, all threads then spin while one waits
    for a core, which takes several times the CPU time, and more wall time too.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
