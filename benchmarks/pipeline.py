"""From a Hugging Face checkpoint to GGUF files: mconv beside convert_hf_to_gguf.py and llama-quantize, in one run.

    python benchmarks/pipeline.py --llama-cpp build/llama.cpp

Every input is read once beforehand, so that both sides find it in the page cache, and every output is synced.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from checkpoint import count_weights
from measure import Cost, program, run

from mconv.convert.cli.console import emit_table, run_command
from mconv.convert.reporting import format_bytes, note
from mconv.quantize.filetypes import FileType

TYPES = ("Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS")
HERE = Path(__file__).parent


@click.command()
@click.option("--llama-cpp", type=click.Path(path_type=Path, exists=True), envvar="MCONV_LLAMA_CPP", required=True)
@click.option("--folder", type=click.Path(path_type=Path), default="build/bench", show_default=True)
@click.option("--layers", default=18, show_default=True, help="Depth of the model; 18 make 1.1 billion weights.")
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default=True)
def main(llama_cpp: Path, folder: Path, layers: int, threads: int) -> None:
    """Compare the pipelines, then show how mconv scales."""
    note("writing the checkpoint")
    source = folder / f"layers-{layers}"
    _write_checkpoint(source, layers)
    weights_file = source / "model.safetensors"
    run(["dd", f"if={weights_file}", "of=/dev/null", "bs=4M"])
    copy = run(["sh", "-c", f"cp {weights_file} {folder}/copy && sync"])
    (folder / "copy").unlink()

    note("convert_hf_to_gguf.py")
    theirs = folder / "theirs.gguf"
    script = llama_cpp / "convert_hf_to_gguf.py"
    their_convert = run([sys.executable, script, source, "--outfile", theirs, "--outtype", "bf16"])
    note("mconv hf-to-gguf")
    our_convert = run(
        [program("mconv"), "hf-to-gguf", source, folder / "ours.gguf", "--threads", threads, "--overwrite"]
    )
    their_types: dict[str, Cost] = {}
    for name in TYPES:
        note(f"llama-quantize {name}")
        number = FileType[name].number
        arguments = [sys.executable, HERE / "llama_quantize.py", theirs, folder / "theirs-quantized.gguf"]
        their_types[name] = run([*arguments, number, threads])
    mquant = [program("mquant"), source, "--output-dir", folder, "--threads", threads, "--overwrite"]
    # The first use compiles the kernels, once per machine.
    all_types = [word for name in TYPES for word in ("--type", name)]
    run([program("mquant"), HERE.parent / "examples/tiny-mistral", *all_types, "--output-dir", folder, "--overwrite"])
    our_types = {name: run([*mquant, "--type", name]) for name in TYPES}
    our_all = run([*mquant, *all_types])

    their_all = their_convert.seconds + sum(cost.seconds for cost in their_types.values())
    rows = [("HF -> bf16, against convert", their_convert.seconds, our_convert, 4.0)]
    for name in TYPES:
        goal = 6.0 if name == "Q4_K_M" else 0.0
        seconds = their_convert.seconds + their_types[name].seconds
        rows.append((f"HF -> {name}, against convert + llama-quantize", seconds, our_types[name], goal))
    rows.append(("HF -> four types, against convert + 4 x llama-quantize", their_all, our_all, 8.0))
    emit_table(
        ["work", "theirs s", "ours s", "ratio", "at least", "cores busy", "peak memory"],
        (
            [
                work,
                f"{seconds:.1f}",
                f"{ours.seconds:.1f}",
                f"{seconds / ours.seconds:.1f}",
                f"{goal:.0f}" if goal else "",
                f"{ours.cores_busy:.2f} of {threads}",
                format_bytes(ours.peak_bytes),
            ]
            for work, seconds, ours, goal in rows
        ),
    )
    click.echo(
        f"cp and sync: {copy.seconds:.1f} s; HF -> bf16 takes {our_convert.seconds / copy.seconds:.2f} times that"
    )
    _scaling(folder, threads, layers)


def _write_checkpoint(folder: Path, layers: int) -> None:
    # In a separate process: the peak memory of a child starts from that of its parent.
    run([sys.executable, HERE / "checkpoint.py", folder, layers])


def _scaling(folder: Path, threads: int, layers: int) -> None:
    """Weights per second must not fall as the model grows."""
    rows = []
    for depth in sorted({max(1, layers // 18), max(1, layers // 5), layers}):
        source = folder / f"layers-{depth}"
        weights = count_weights(depth)
        _write_checkpoint(source, depth)
        run(["dd", f"if={source}/model.safetensors", "of=/dev/null", "bs=4M"])
        cost = run(
            [program("mquant"), source, "--type", "Q4_K_M", "--output-dir", folder, "--threads", threads, "--overwrite"]
        )
        rows.append(
            [
                f"{weights / 1e9:.2f} B",
                f"{cost.seconds:.1f}",
                f"{weights / cost.seconds / 1e6:.0f}",
                format_bytes(cost.peak_bytes),
            ]
        )
    click.echo()
    emit_table(["Q4_K_M, weights", "seconds", "M weights/s", "peak memory"], rows)


if __name__ == "__main__":
    run_command(main)
