"""Permissions that hold for root too."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION = 0x20080522
"""Of the system calls' structures (linux/capability.h)."""

_BYPASSES = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: to read what the mode of a file forbids."""


@contextmanager
def bound_by_modes() -> Iterator[None]:
    """In this thread nobody reads a file whose mode forbids it, not even root."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    # Effective, permitted and inheritable, the lower 32 capabilities and then the upper ones.
    sets = (ctypes.c_uint32 * 6)()
    _check(libc.capget(header, sets))
    effective = sets[0]
    sets[0] = effective & ~_BYPASSES
    _check(libc.capset(header, sets))
    try:
        yield
    finally:
        sets[0] = effective
        _check(libc.capset(header, sets))


def _check(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
