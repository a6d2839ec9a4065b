"""Whether AMX can be trusted: processors list tiles that fault in many virtual machines.

llama.cpp, built for a processor that lists `amx_tile`, multiplies quantized weights with AMX. Where the hypervisor does
not really offer the tiles the first such product kills the process, so it is tried once in a child. Without llama.cpp's
extra buffer types (`llama_model_params.use_extra_bufts`) the same weights take the plain AVX way.
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
    """The features of the first processor in the text of /proc/cpuinfo; none where it lists none."""
    for line in cpu_info.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def survives_extra_buffers(flags: Collection[str], probe: Sequence[str]) -> bool:
    """Whether llama.cpp may use its extra buffer types on a processor with these features.

    Args:
        flags: the features of the processor; without `amx_tile` there is nothing to try.
        probe: the command line of the child that multiplies with quantized weights; anything but a clean end (a
            signal, an error, no end at all) counts against the extra buffers.
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
    """The answer for this machine, found once for the process and said on stderr when it is no."""
    flags = cpu_flags(CPU_INFO.read_text()) if CPU_INFO.exists() else frozenset()
    safe = survives_extra_buffers(flags, PROBE)
    if not safe:
        note("AMX is listed by this processor but does not work here; going on without it")
    return safe
