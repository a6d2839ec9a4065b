"""Command lines in processes of their own, without waiting for their imports each time.

This process imports them once. For each line on its standard input, a JSON object, it forks; the child runs one command
as its console script would. It prints the child's process id, and when that has ended, its exit code.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any

from mconv.convert.cli.console import run_command

_MODULES = (
    "huggingface_hub.hf_api",
    "mconv.convert.hub.sources",
    "mconv.convert.layouts.gguf.reader",
    "mconv.convert.summary",
    "support.hub.impatient",
)


def main() -> None:
    """Serve until standard input ends."""
    for module in _MODULES:
        importlib.import_module(module)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            _run(job)
        print(child, flush=True)  # noqa: T201
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201


def _run(job: dict[str, Any]) -> None:
    for stream, path in ((1, job["out"]), (2, job["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(job["variables"])
    module, attribute = job["command"].split(":")
    sys.argv = [attribute, *job["arguments"]]
    code = 1
    try:
        run_command(getattr(importlib.import_module(module), attribute))
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
