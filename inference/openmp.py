"""How GNU OpenMP's threads wait for each other, which it decides when a library that uses it is loaded."""

from __future__ import annotations

import os

SPIN_COUNT = 10_000  # some 0.1 ms: longer than a step between two barriers, shorter than a scheduler's time slice


def spin_briefly() -> None:
    """Let waiting threads go to sleep soon, unless the user tuned GNU OpenMP. Call it before llama.cpp or torch loads.

    By default they spin for milliseconds. On a machine that runs anything else, a thread that lost its core then keeps
    the others burning theirs: several times the CPU time, and more wall time too.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
