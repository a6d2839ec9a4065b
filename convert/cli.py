"""The command line of mconv."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import convert
from convert.console import emit_json, emit_table, format_bytes, note, parse_bytes, run_command

if TYPE_CHECKING:
    from convert.checkpoint import Checkpoint
    from convert.plan import Plan

# Whether a path can be read is for the code that opens it to say.
path_type = click.Path(path_type=Path, readable=False)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the plan with its exact sizes; write nothing.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads to work with.  [default: all cores]"
)
outtype_option = click.option(
    "--outtype",
    type=click.Choice(["auto", "f32", "f16", "bf16", "q8_0"], case_sensitive=False),
    default="auto",
    show_default=True,
    help="Type of the matrices. auto keeps a 16-bit checkpoint as it is and makes a float32 one f16.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["auto", "f32", "f16", "bf16"], case_sensitive=False),
    default="auto",
    show_default=True,
    help="Type of every tensor. auto is the 16-bit type of the matrices, and bf16 for quantized ones.",
)
max_shard_size_option = click.option(
    "--max-shard-size", default="5GB", show_default=True, metavar="SIZE", help="Largest safetensors file."
)
hf_config_option = click.option(
    "--hf-config",
    type=path_type,
    metavar="DIR|FILE",
    help="config.json and tokenizer of the model, where the checkpoint has none beside it.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(convert.__version__, prog_name="mconv")
def cli() -> None:
    """Move checkpoints between layouts, exactly, in bounded memory."""


@cli.command("hf-to-gguf")
@click.argument("source", type=path_type, metavar="SRC")
@click.argument("output", type=path_type, metavar="OUT.gguf")
@outtype_option
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
    from convert.layouts.hf import open_hf

    _write_gguf(open_hf(source), output, outtype, dry_run, as_json, overwrite, threads)


@cli.command("megatron-to-gguf")
@click.argument("source", type=path_type, metavar="DIR")
@click.argument("output", type=path_type, metavar="OUT.gguf")
@hf_config_option
@outtype_option
@dry_run_option
@json_option
@overwrite_option
@threads_option
def megatron_to_gguf(
    source: Path,
    output: Path,
    hf_config: Path | None,
    outtype: str,
    dry_run: bool,
    as_json: bool,
    overwrite: bool,
    threads: int | None,
) -> None:
    """Write a Megatron-Core checkpoint (torch_dist) as one GGUF file.

    DIR holds the tracker file, or is the folder of one iteration. Whatever parallelism wrote it, it is read as one
    model; the state of the optimizer is left out.

    \b
    Example:
      mconv megatron-to-gguf checkpoints/run-7/ run-7.gguf --hf-config Mistral-7B-v0.3/
    """
    from convert.layouts.megatron import open_megatron

    _write_gguf(open_megatron(source, hf_config), output, outtype, dry_run, as_json, overwrite, threads)


@cli.command("hf-to-megatron")
@click.argument("source", type=path_type, metavar="SRC")
@click.argument("output", type=path_type, metavar="DIR")
@dry_run_option
@json_option
@overwrite_option
def hf_to_megatron(source: Path, output: Path, dry_run: bool, as_json: bool, overwrite: bool) -> None:
    """Write a Hugging Face folder as a Megatron-Core checkpoint (torch_dist).

    It loads at any tensor, pipeline and expert parallelism. Configuration and tokenizer lie beside the weights.

    \b
    Example:
      mconv hf-to-megatron Mistral-7B-Instruct-v0.3/ mistral-7b-megatron/
    """
    from convert.layouts.hf import companions, open_hf
    from convert.layouts.megatron_writer import check_folder, plan_megatron, write_megatron

    checkpoint = open_hf(source)
    for line in checkpoint.notes:
        note(f"note: {line}")
    plan = plan_megatron(checkpoint)
    if not dry_run:
        check_folder(plan, output, checkpoint.files, overwrite=overwrite)
        write_megatron(plan, output, companions(source))
    if as_json:
        members = {"path": str(output), "bytes": plan.size, "tensors": len(plan.tensors)}
        emit_json({"files": [{**members, "plan": plan.describe_tensors()} if dry_run else members]})
        return
    if dry_run:
        _print_tensors(plan.describe_tensors())
    verb = "would write" if dry_run else "wrote"
    click.echo(f"{verb} {output}: {plan.size} bytes of weights ({format_bytes(plan.size)})")


def _write_gguf(
    checkpoint: Checkpoint,
    output: Path,
    outtype: str,
    dry_run: bool,
    as_json: bool,
    overwrite: bool,
    threads: int | None,
) -> None:
    """The end of every conversion to GGUF."""
    from convert.encodings import encode_floats
    from convert.layouts.gguf import model_targets, not_carried, plan_conversion, source_type
    from convert.run import Output, check_outputs, run
    from convert.threads import default_threads
    from convert.types import BlockType

    # Shapes first: a vocabulary is filled up to the size that the configuration claims.
    targets = model_targets(checkpoint)
    for line in (*checkpoint.notes, *not_carried(checkpoint.spec), *checkpoint.vocabulary().notes):
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
@click.argument("source", type=path_type, metavar="SRC.gguf")
@click.argument("output", type=path_type, metavar="OUT")
@dtype_option
@max_shard_size_option
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

    size = parse_bytes(max_shard_size)
    _write_hf(open_gguf(source), output, dtype, size, dry_run, as_json, overwrite, threads)


@cli.command("megatron-to-hf")
@click.argument("source", type=path_type, metavar="DIR")
@click.argument("output", type=path_type, metavar="OUT")
@hf_config_option
@dtype_option
@max_shard_size_option
@dry_run_option
@json_option
@overwrite_option
@threads_option
def megatron_to_hf(
    source: Path,
    output: Path,
    hf_config: Path | None,
    dtype: str,
    max_shard_size: str,
    dry_run: bool,
    as_json: bool,
    overwrite: bool,
    threads: int | None,
) -> None:
    """Write a Megatron-Core checkpoint (torch_dist) as a Hugging Face folder.

    \b
    Example:
      mconv megatron-to-hf checkpoints/run-7/ run-7/ --hf-config Mistral-7B-v0.3/
    """
    from convert.layouts.megatron import open_megatron

    size = parse_bytes(max_shard_size)
    _write_hf(open_megatron(source, hf_config), output, dtype, size, dry_run, as_json, overwrite, threads)


def _write_hf(
    checkpoint: Checkpoint,
    output: Path,
    dtype: str,
    max_shard_size: int,
    dry_run: bool,
    as_json: bool,
    overwrite: bool,
    threads: int | None,
) -> None:
    """The end of every conversion to a Hugging Face folder."""
    from convert.layouts.hf_writer import check_folder, plan_folder, source_dtype, write_folder
    from convert.threads import default_threads
    from convert.types import BlockType

    for line in (*checkpoint.notes, *checkpoint.vocabulary().notes):
        note(f"note: {line}")
    kind = source_dtype(checkpoint.tensors) if dtype == "auto" else BlockType[dtype.upper()]
    plan = plan_folder(checkpoint, kind, max_shard_size)
    if not dry_run:
        outputs = check_folder(output, plan, checkpoint.files, overwrite=overwrite)
        write_folder(outputs, plan, threads=threads or default_threads(), what=output.name)
    if as_json:
        files = [describe(shard, output / name, kind.name, dry_run) for name, shard in plan.shards.items()]
        others = [{"path": str(output / name), "bytes": len(content)} for name, content in plan.files.items()]
        emit_json({"folder": str(output), "bytes": plan.size, "files": files, "other_files": others})
        return
    if dry_run:
        _print_tensors(row for shard in plan.shards.values() for row in shard.describe_tensors())
    verb = "would write" if dry_run else "wrote"
    shards = f"{len(plan.shards)} safetensors file{'s'[: len(plan.shards) != 1]}"
    click.echo(f"{verb} {output}: {plan.size} bytes ({format_bytes(plan.size)}), {kind.name}, {shards}")


@cli.command("inspect")
@click.argument("path", type=path_type, metavar="PATH")
@hf_config_option
@json_option
def inspect(path: Path, hf_config: Path | None, as_json: bool) -> None:
    """Say what a checkpoint is: layout, family, shape, types, sizes, vocabulary. No weight is read.

    \b
    Example:
      mconv inspect Mistral-7B-Instruct-v0.3/
    """
    from convert.layouts import open_checkpoint
    from convert.summary import summarize

    layout, checkpoint = open_checkpoint(path, hf_config)
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
        _print_tensors(plan.describe_tensors())
    verb = "would write" if dry_run else "wrote"
    click.echo(
        f"{verb} {path}: {plan.size} bytes ({format_bytes(plan.size)}), {plan.bits_per_weight:.2f} bits per weight"
    )


def _print_tensors(rows: Iterable[dict[str, Any]]) -> None:
    emit_table(
        ["tensor", "shape", "type", "bytes"],
        ([str(row["name"]), "x".join(map(str, row["shape"])), str(row["type"]), str(row["bytes"])] for row in rows),
    )


def main() -> None:
    """Entry point of `mconv`."""
    run_command(cli)


if __name__ == "__main__":
    main()
