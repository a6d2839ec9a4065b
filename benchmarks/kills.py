"""Kills commands at random moments, runs each again, and shows what the second run had left to do.

    python benchmarks/kills.py --kills 40

Each line of the table is one command. Every second run must end with the bytes of a run that nothing stopped.
"""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
from measure import program, run

from mconv.convert.cli.console import emit_table, run_command
from mconv.convert.errors import ValidationError
from mconv.convert.reporting import note

HERE = Path(__file__).parent
TYPES = ("Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS")
_RESUMED = re.compile(r"continuing from .* \((\d+) %\)")


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default="build/kills", show_default=True)
@click.option("--layers", default=3, show_default=True, help="Depth of the model; 18 make 1.1 billion weights.")
@click.option("--kills", default=40, show_default=True, help="How often each command is killed.")
@click.option("--seed", default=0, show_default=True)
def main(folder: Path, layers: int, kills: int, seed: int) -> None:
    """Print how much of each command survives a kill."""
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "source"
    run([sys.executable, HERE / "checkpoint.py", source, layers])
    run([program("mconv"), "hf-to-gguf", source, folder / "source.gguf"])
    out = folder / "out"
    commands: dict[str, Sequence[object]] = {
        "mquant, four types": (
            program("mquant"), source, *(word for name in TYPES for word in ("--type", name)), "--output-dir", out,
        ),
        "hf-to-megatron": (program("mconv"), "hf-to-megatron", source, out / "megatron"),
        "gguf-to-hf": (program("mconv"), "gguf-to-hf", folder / "source.gguf", out / "hf"),
        "hf-to-gguf": (program("mconv"), "hf-to-gguf", source, out / "a.gguf"),
    }  # fmt: skip
    chance = random.Random(seed)
    rows = []
    for name, command in commands.items():
        rows.append(_row(name, [str(word) for word in command], out, kills, chance))
        note(", ".join(rows[-1]))
    emit_table(["command", "whole run s", "killed", "went on", "mean share kept", "mean rerun s", "same bytes"], rows)
    if any(row[-1] != f"{kills} of {kills}" for row in rows):
        raise ValidationError("a run that was killed did not end with the same bytes", "see the table")


def _row(name: str, command: Sequence[str], out: Path, kills: int, chance: random.Random) -> list[str]:
    """What a command's kills came to."""
    _clear(out)
    subprocess.run(command, check=True, capture_output=True)
    _clear(out)
    # Twice, since the first run may compile kernels.
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.monotonic() - began
    expected, same, killed, shares, reruns = _digests(out), 0, 0, [], []
    for _ in range(kills):
        _clear(out)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, whole))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            same += _digests(out) == expected
            continue
        killed += 1
        began = time.monotonic()
        again = subprocess.run(command, capture_output=True, text=True)
        reruns.append(time.monotonic() - began)
        found = _RESUMED.search(again.stderr)
        shares.append(int(found[1]) if found else 0)
        # Killed on its way out, it had written everything: the second run says that it exists.
        whole_already = again.returncode == 4 and "exists already" in again.stderr
        same += (again.returncode == 0 or whole_already) and _digests(out) == expected
    went_on = sum(share > 0 for share in shares)
    return [
        name,
        f"{whole:.1f}",
        str(killed),
        str(went_on),
        f"{sum(shares) / max(1, went_on):.0f} %",
        f"{sum(reruns) / max(1, len(reruns)):.1f}",
        f"{same} of {kills}",
    ]


def _clear(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def _digests(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


if __name__ == "__main__":
    run_command(main)
