"""The command line of mconv."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import convert
from convert.console import emit_json, emit_table, format_bytes, note, parse_bytes, run_command

if TYPE_CHECKING:
    from convert.plan import Plan

# Whether a path can be read is for the code that opens it to say.
path_type = click.Path(path_type=Path, readable=False)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the plan with its exact sizes; write nothing.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads to work with.  [default: all cores]"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(convert.__version__, prog_name="mconv")
def cli() -> None:
    """Move checkpoints between layouts, exactly, in bounded memory."""


@cli.command("hf-to-gguf")
@click.argument("source", type=path_type, metavar="SRC")
@click.argument("output", type=path_type, metavar="OUT.gguf")
@click.option(
    "--outtype",
    type=click.Choice(["auto", "f32", "f16", "bf16", "q8_0"], case_sensitive=False),
    default="auto",
    show_default=True,
    help="Type of the matrices. auto keeps a 16-bit checkpoint as it is and makes a float32 one f16.",
)
@dry_run_option
@json_option
@overwrite_option
@threads_option
def hf_to_gguf(
    source: Path, output: Path, outtype: str, dry_run: bool, as_json: bool, overwrite: bool, threads: int | None
) -> None:
    """Write a Hugging Face folder as one GGUF file.

    \b
    Example:
      mconv hf-to-gguf Mistral-7B-Instruct-v0.3/ mistral-7b.gguf
    """
    from convert.encodings import encode_floats
    from convert.layouts.gguf import model_targets, plan_conversion, source_type
    from convert.layouts.hf import open_hf
    from convert.run import Output, check_outputs, run
    from convert.threads import default_threads
    from convert.types import BlockType

    checkpoint = open_hf(source)
    # Shapes first: a vocabulary is filled up to the size that the configuration claims.
    targets = model_targets(checkpoint)
    for line in (*checkpoint.notes, *checkpoint.vocabulary().notes):
        note(f"note: {line}")
    kind = source_type(targets) if outtype == "auto" else BlockType[outtype.upper()]
    if outtype == "auto" and any(target.rows.dtype == "F32" and len(target.shape) > 1 for target in targets):
        note(f"note: float32 matrices are rounded to {kind.name}; --outtype f32 keeps them")
    plan = plan_conversion(checkpoint, targets, kind)
    outputs = [Output(plan, output)]
    if not dry_run:
        check_outputs(outputs, checkpoint.files, overwrite=overwrite)
        run(outputs, encode_floats, threads=threads or default_threads(), what=output.name)
    if as_json:
        emit_json({"files": [describe(plan, output, kind.name, dry_run)]})
    else:
        _print_plan(plan, output, dry_run)


@cli.command("gguf-to-hf")
@click.argument("source", type=click.Path(path_type=Path), metavar="SRC.gguf")
@click.argument("output", type=click.Path(path_type=Path), metavar="OUT")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "f32", "f16", "bf16"], case_sensitive=False),
    default="auto",
    show_default=True,
    help="Type of every tensor. auto is the 16-bit type of the matrices, and bf16 for quantized ones.",
)
@click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE", help="Largest safetensors file.")
@dry_run_option
@json_option
@overwrite_option
@threads_option
def gguf_to_hf(
    source: Path,
    output: Path,
    dtype: str,
    max_shard_size: str,
    dry_run: bool,
    as_json: bool,
    overwrite: bool,
    threads: int | None,
) -> None:
    """Write a GGUF file, or a split one given by its first part, as a Hugging Face folder.

    Quantized tensors are decoded. The configuration and the tokenizer come from the file alone.

    \b
    Example:
      mconv gguf-to-hf mistral-7b-Q8_0.gguf Mistral-7B/
    """
    from convert.layouts.gguf_source import open_gguf
    from convert.layouts.hf_writer import check_folder, plan_folder, source_dtype, write_folder
    from convert.threads import default_threads
    from convert.types import BlockType

    size = parse_bytes(max_shard_size)
    checkpoint = open_gguf(source)
    for line in (*checkpoint.notes, *checkpoint.vocabulary().notes):
        note(f"note: {line}")
    kind = source_dtype(checkpoint.tensors) if dtype == "auto" else BlockType[dtype.upper()]
    plan = plan_folder(checkpoint, kind, size)
    if not dry_run:
        outputs = check_folder(output, plan, checkpoint.files, overwrite=overwrite)
        write_folder(outputs, plan, threads=threads or default_threads(), what=output.name)
    if as_json:
        files = [describe(shard, output / name, kind.name, dry_run) for name, shard in plan.shards.items()]
        others = [{"path": str(output / name), "bytes": len(content)} for name, content in plan.files.items()]
        emit_json({"folder": str(output), "bytes": plan.size, "files": files, "other_files": others})
        return
    if dry_run:
        _print_tensors(plan.shards.values())
    verb = "would write" if dry_run else "wrote"
    shards = f"{len(plan.shards)} safetensors file{'s'[: len(plan.shards) != 1]}"
    click.echo(f"{verb} {output}: {plan.size} bytes ({format_bytes(plan.size)}), {kind.name}, {shards}")


@cli.command("inspect")
@click.argument("path", type=click.Path(path_type=Path), metavar="PATH")
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Say what a checkpoint is: layout, family, shape, types, sizes, vocabulary. No weight is read.

    \b
    Example:
      mconv inspect Mistral-7B-Instruct-v0.3/
    """
    from convert.layouts import open_checkpoint
    from convert.summary import summarize

    layout, checkpoint = open_checkpoint(path)
    for line in checkpoint.notes:
        note(f"note: {line}")
    summary = summarize(layout, checkpoint)
    if as_json:
        emit_json(summary)
    else:
        emit_table(["property", "value"], _flatten(summary))


def _flatten(members: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    """Rows of a table from nested members: `rope.theta`."""
    for key, value in members.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield [prefix + key, str(value).lower() if isinstance(value, bool) else str(value)]


def describe(plan: Plan, path: Path, kind: str, dry_run: bool) -> dict[str, object]:
    """What a written (or planned) file is, for JSON."""
    members: dict[str, object] = {
        "path": str(path),
        "type": kind,
        "bytes": plan.size,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "tensors": plan.type_counts,
    }
    if dry_run:
        members["plan"] = plan.describe_tensors()
    return members


def _print_plan(plan: Plan, path: Path, dry_run: bool) -> None:
    if dry_run:
        _print_tensors([plan])
    verb = "would write" if dry_run else "wrote"
    click.echo(
        f"{verb} {path}: {plan.size} bytes ({format_bytes(plan.size)}), {plan.bits_per_weight:.2f} bits per weight"
    )


def _print_tensors(plans: Iterable[Plan]) -> None:
    emit_table(
        ["tensor", "shape", "type", "bytes"],
        (
            [str(row["name"]), "x".join(map(str, row["shape"])), str(row["type"]), str(row["bytes"])]
            for plan in plans
            for row in plan.describe_tensors()
        ),
    )


def main() -> None:
    """Entry point of `mconv`."""
    run_command(cli)


if __name__ == "__main__":
    main()
