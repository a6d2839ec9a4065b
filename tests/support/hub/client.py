"""A machine that talks to the Hub: command lines of ours in processes of their own, which can be killed."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from support.hub.server import OWNER_TOKEN, STRANGER_TOKEN, Hub
from support.paths import ROOT

_TESTS = ROOT / "tests"


class Ended(NamedTuple):
    """How a process ended: exit code (negative: the signal) and what it printed."""

    code: int
    out: str
    err: str


class Client:
    """One machine: a token, a Hub, and a home folder with a cache, in which commands run."""

    def __init__(
        self, hub: Hub, home: Path, token: str | None = OWNER_TOKEN, variables: Mapping[str, str] | None = None
    ) -> None:
        self.home = home
        self._pid: queue.Queue[int] = queue.Queue()
        # A stranger's settings or token must not take part.
        strange = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(strange)}
        environment |= {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": os.pathsep.join([str(_TESTS.parent), str(_TESTS)]),
            **({"HF_TOKEN": token} if token else {}),
            **(variables or {}),
        }
        home.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.hub.run"],
            env=environment,
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, *arguments: object, variables: Mapping[str, str] | None = None) -> Ended:
        """Run `MODULE:ATTRIBUTE`, a command line, to its end."""
        out, err = self.home / "out", self.home / "err"
        job = {
            "command": command,
            "arguments": [str(argument) for argument in arguments],
            "out": str(out),
            "err": str(err),
            "variables": dict(variables or {}),
        }
        print(json.dumps(job), file=self._process.stdin, flush=True)
        self._pid.put(int(self._read()))
        code = int(self._read())
        # Nobody killed it.
        if not self._pid.empty():
            self._pid.get()
        ended = Ended(code, out.read_text(), err.read_text())
        # Nothing that lets anyone in is ever printed.
        for secret in (OWNER_TOKEN, STRANGER_TOKEN, "signature="):
            assert secret not in ended.out + ended.err, ended
        return ended

    def kill(self) -> None:
        """Kill what runs now, as a crash of the machine would; may be called by another thread."""
        os.kill(self._pid.get(timeout=30), signal.SIGKILL)

    def close(self) -> None:
        """Switch the machine off."""
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()
