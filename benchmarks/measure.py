"""Run a command and measure its cost: wall time, processor time, peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        seconds: wall time.
        processor_seconds: user and system time of all its threads.
        peak_bytes: largest resident memory.
    """

    seconds: float
    processor_seconds: float
    peak_bytes: int

    @property
    def cores_busy(self) -> float:
        """How many cores it kept busy on average."""
        return self.processor_seconds / self.seconds


def run(arguments: Sequence[object]) -> Cost:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed; says what it printed.
    """
    started = time.monotonic()
    with subprocess.Popen(list(map(str, arguments)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments[0]} failed:\n{output.decode(errors='replace')}")
    return Cost(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def program(name: str) -> Path:
    """A command installed beside this interpreter."""
    return Path(sys.executable).with_name(name)
