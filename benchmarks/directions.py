"""Conversions between Hugging Face, Megatron-Core and GGUF, compared with a plain copy and with loading the checkpoint.

    python benchmarks/directions.py

Every input is read once beforehand, so that it is in the page cache. mconv syncs what it writes, and so does the copy.
Between two rows, the disk is given time to settle.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click
from measure import Cost, program, run

from mconv.convert.cli.console import emit_table, run_command
from mconv.convert.reporting import format_bytes, note

HERE = Path(__file__).parent
AT_MOST = 3.0


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default="build/bench", show_default=True)
@click.option("--layers", default=18, show_default=True, help="Depth of the model; 18 make 1.1 billion weights.")
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default=True)
def main(folder: Path, layers: int, threads: int) -> None:
    """Print what each direction costs."""
    source = folder / f"layers-{layers}"
    note("writing the checkpoint")
    # In a separate process: the peak memory of a child starts from that of its parent.
    run([sys.executable, HERE / "checkpoint.py", source, layers])
    megatron, back, file = folder / "megatron", folder / "back", folder / "megatron.gguf"
    weights = source / "model.safetensors"
    copy = measure([weights], "sh", "-c", f"cp {weights} {folder}/copy && sync {folder}/copy")
    (folder / "copy").unlink()
    ours = {"HF -> Megatron": convert("hf-to-megatron", source, megatron, threads)}
    ours["Megatron -> HF"] = convert("megatron-to-hf", megatron, back, threads)
    ours["Megatron -> GGUF"] = convert("megatron-to-gguf", megatron, file, threads)
    shutil.rmtree(megatron)
    ours["GGUF -> Megatron"] = convert("gguf-to-megatron", file, megatron, threads)
    chunks = megatron / "release" / "__0_0.distcp"
    start = measure([], sys.executable, "-c", "import mconv.convert.cli.main")
    peers = {
        name: measure([chunks], sys.executable, HERE / "megatron_peers.py", megatron / "release", word)
        for name, word in (
            ("torch.distributed.checkpoint", "dcp"),
            ("megatron-core dist_checkpointing", "megatron-core"),
        )
    }
    rows = [row("cp, then sync", copy, copy), *(row(name, cost, copy, AT_MOST) for name, cost in ours.items())]
    emit_table(["work", "seconds", "times cp", "at most", "cores busy", "peak memory"], rows)
    click.echo()
    reading = measure([chunks], program("mconv"), "megatron-to-gguf", megatron, "/dev/null", "--dry-run")
    read = [("mconv: opened and planned", reading), *((f"{name}: loaded whole", cost) for name, cost in peers.items())]
    emit_table(
        ["what reads the same checkpoint", "seconds", "peak memory"],
        ([name, f"{cost.seconds:.1f}", format_bytes(cost.peak_bytes)] for name, cost in read),
    )
    click.echo(f"Python with nothing but mconv's command line: {format_bytes(start.peak_bytes)}")
    for path in (megatron, back):
        shutil.rmtree(path)
    file.unlink()


def convert(name: str, source: Path, output: Path, threads: int) -> Cost:
    """Run one of mconv's commands, on inputs that are in memory."""
    inputs = [path for path in ([source] if source.is_file() else source.rglob("*")) if path.is_file()]
    return measure(inputs, program("mconv"), name, source, output, "--threads", threads, "--overwrite")


def measure(inputs: list[Path], *command: object) -> Cost:
    """Run a command once its inputs are in memory and the disk is quiet."""
    for path in inputs:
        run(["dd", f"if={path}", "of=/dev/null", "bs=4M"])
    os.sync()
    return run(command)


def row(work: str, cost: Cost, copy: Cost, most: float = 0.0) -> list[str]:
    """A row of the table."""
    return [
        work,
        f"{cost.seconds:.1f}",
        f"{cost.seconds / copy.seconds:.2f}",
        f"{most:.0f}" if most else "",
        f"{cost.cores_busy:.2f}",
        format_bytes(cost.peak_bytes),
    ]


if __name__ == "__main__":
    run_command(main)
