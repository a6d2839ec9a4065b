"""Find out whether AMX works: in many virtual machines, processors list AMX tiles that fault when used.

llama.cpp, built for a processor that lists `amx_tile`, multiplies quantized weights with AMX. If the hypervisor does
not support the tiles, the first such product kills the process, so a child process tries it once. Without llama.cpp's
extra buffer types (`llama_model_params.use_extra_bufts`) the same weights are multiplied with AVX.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from mconv.convert.reporting import note

CPU_INFO = Path("/proc/cpuinfo")
PROBE = (sys.executable, "-I", str(Path(__file__).with_name("amx_probe.py")))
PROBE_SECONDS = 120


def cpu_flags(cpu_info: str) -> frozenset[str]:
    """The features of the first processor in the text of /proc/cpuinfo; empty if it lists none."""
    for line in cpu_info.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def survives_extra_buffers(flags: Collection[str], probe: Sequence[str]) -> bool:
    """Whether llama.cpp may use its extra buffer types on a processor with these features.

    Args:
        flags: the features of the processor; without `amx_tile` the probe is not run.
        probe: the command line of a child process that multiplies quantized weights; if it does not exit normally (a
            signal, an error, a timeout), the extra buffers must not be used.
    """
    if "amx_tile" not in flags:
        return True
    try:
        child = subprocess.run(probe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return child.returncode == 0


@functools.cache
def use_extra_buffers() -> bool:
    """Whether llama.cpp may use extra buffers on this machine; probed once per process, with a note if not."""
    flags = cpu_flags(CPU_INFO.read_text()) if CPU_INFO.exists() else frozenset()
    safe = survives_extra_buffers(flags, PROBE)
    if not safe:
        note("this processor lists AMX, but it does not work here; continuing without it")
    return safe
