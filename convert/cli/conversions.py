"""Every direction between two layouts, as a command: a reader, a writer, and the options that each brings along."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mconv.convert.cli.console import emit_json, format_bytes, note, parse_bytes
from mconv.convert.cli.options import (
    WriteOptions,
    dry_run_option,
    hf_config_option,
    json_option,
    overwrite_option,
    path_type,
    threads_option,
)
from mconv.convert.cli.output import describe, print_tensors

if TYPE_CHECKING:
    from mconv.convert.engine.folder import FolderPlan
    from mconv.convert.model.checkpoint import Checkpoint
    from mconv.convert.tensors.block_types import BlockType

Option = Callable[[Callable[..., Any]], Callable[..., Any]]

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
    help="Type of every tensor. auto keeps what is stored, and makes quantized matrices bf16.",
)
max_shard_size_option = click.option(
    "--max-shard-size", default="5GB", show_default=True, metavar="SIZE", help="Largest safetensors file."
)


def _open_hf(path: Path) -> Checkpoint:
    from mconv.convert.hub import resolve_source
    from mconv.convert.layouts.hf.reader import open_hf

    return open_hf(resolve_source(path))


def _open_megatron(path: Path, hf_config: Path | None) -> Checkpoint:
    from mconv.convert.layouts.megatron.reader import open_megatron

    return open_megatron(path, hf_config)


def _open_gguf(path: Path) -> Checkpoint:
    from mconv.convert.layouts.gguf.reader import open_gguf

    return open_gguf(path)


def _write_gguf(checkpoint: Checkpoint, output: Path, options: WriteOptions, outtype: str) -> None:
    from mconv.convert.engine.local import Output, check_outputs, run
    from mconv.convert.layouts.gguf.writer import (
        model_targets,
        not_carried,
        plan_conversion,
        source_type,
        stays_float32,
    )
    from mconv.convert.tensors.block_types import BlockType
    from mconv.convert.tensors.encodings import encode_floats

    # Shapes first: a vocabulary is filled up to the size that the configuration claims.
    targets = model_targets(checkpoint)
    _say(*checkpoint.notes, *not_carried(checkpoint.spec), *checkpoint.vocabulary().notes)
    kind = source_type(targets) if outtype == "auto" else BlockType[outtype.upper()]
    if outtype == "auto" and any(target.rows.dtype == "F32" and not stays_float32(target) for target in targets):
        _say(f"float32 matrices are rounded to {kind.name}; --outtype f32 keeps them")
    plan = plan_conversion(checkpoint, targets, kind)
    outputs = [Output(plan, output)]
    if not options.dry_run:
        check_outputs(outputs, checkpoint.files, overwrite=options.overwrite)
        run(outputs, encode_floats, threads=options.thread_count, what=output.name)
    if options.as_json:
        emit_json({"files": [describe(plan, output, kind.name, options.dry_run)]})
        return
    if options.dry_run:
        print_tensors(plan.describe_tensors())
    bits = f"{plan.bits_per_weight:.2f} bits per weight"
    click.echo(f"{options.verb} {output}: {plan.size} bytes ({format_bytes(plan.size)}), {bits}")


def _write_hf(checkpoint: Checkpoint, output: Path, options: WriteOptions, dtype: str, max_shard_size: str) -> None:
    from mconv.convert.layouts.hf.writer import check_folder, plan_hf, write_hf

    size = parse_bytes(max_shard_size)
    _say(*checkpoint.notes, *checkpoint.vocabulary().notes)
    plan = plan_hf(checkpoint, _wanted(dtype), size)
    if not options.dry_run:
        outputs = check_folder(output, plan, checkpoint.files, overwrite=options.overwrite)
        write_hf(outputs, plan, threads=options.thread_count, what=output.name)
    _report_folder(plan, output, options)


def _write_megatron(checkpoint: Checkpoint, output: Path, options: WriteOptions, dtype: str) -> None:
    from mconv.convert.layouts.megatron.writer import check_folder, plan_megatron, write_megatron

    _say(*checkpoint.notes, *checkpoint.vocabulary().notes)
    plan = plan_megatron(checkpoint, _wanted(dtype))
    if not options.dry_run:
        check_folder(output, plan, checkpoint.files, overwrite=options.overwrite)
        write_megatron(output, plan, threads=options.thread_count)
    _report_folder(plan, output, options)


def _say(*lines: str) -> None:
    for line in lines:
        note(f"note: {line}")


def _wanted(dtype: str) -> BlockType | None:
    from mconv.convert.tensors.block_types import BlockType

    return None if dtype == "auto" else BlockType[dtype.upper()]


def _report_folder(plan: FolderPlan, output: Path, options: WriteOptions) -> None:
    """What a folder holds: its files of weights, and the others."""
    counts: dict[str, int] = {}
    for weights in plan.weights.values():
        for name, count in weights.type_counts.items():
            counts[name] = counts.get(name, 0) + count
    kind = max(counts, key=lambda name: counts[name])
    if options.as_json:
        files = [describe(weights, output / name, kind, options.dry_run) for name, weights in plan.weights.items()]
        others = [{"path": str(output / name), "bytes": len(content)} for name, content in plan.files.items()]
        emit_json({"folder": str(output), "bytes": plan.size, "files": files, "other_files": others})
        return
    if options.dry_run:
        print_tensors(row for weights in plan.weights.values() for row in weights.describe_tensors())
    shards = f"{len(plan.weights)} file{'s'[: len(plan.weights) != 1]} of weights"
    click.echo(f"{options.verb} {output}: {plan.size} bytes ({format_bytes(plan.size)}), {kind}, {shards}")


@dataclass(frozen=True)
class _Side:
    """A layout as the source or the target of a conversion.

    Attributes:
        what: how a sentence names it.
        metavar: how the usage line names its path.
        act: opens a path, or writes a checkpoint to one; takes the options beyond that by their names.
        options: those options.
        about: what the help says of it.
    """

    what: str
    metavar: str
    act: Callable[..., Any]
    options: tuple[Option, ...] = ()
    about: str = ""


_SOURCES = {
    "hf": _Side("a Hugging Face folder", "SRC", _open_hf),
    "megatron": _Side(
        "a Megatron-Core checkpoint",
        "DIR",
        _open_megatron,
        (hf_config_option,),
        "DIR holds the tracker file, or is the folder of one iteration, in the torch_dist or the legacy torch format. "
        "Whatever parallelism wrote it, it is read as one model; the state of the optimizer is left out.",
    ),
    "gguf": _Side(
        "a GGUF file",
        "SRC.gguf",
        _open_gguf,
        (),
        "A split file is given by its first part. Quantized tensors are decoded. Configuration and tokenizer come from "
        "the file alone.",
    ),
}
_TARGETS = {
    "gguf": _Side("one GGUF file", "OUT.gguf", _write_gguf, (outtype_option,)),
    "hf": _Side("a Hugging Face folder", "OUT", _write_hf, (dtype_option, max_shard_size_option)),
    "megatron": _Side(
        "a Megatron-Core checkpoint (torch_dist)",
        "OUT",
        _write_megatron,
        (dtype_option,),
        "It loads at any tensor, pipeline and expert parallelism. Configuration and tokenizer lie beside the weights.",
    ),
}
_EXAMPLES = {
    ("hf", "gguf"): "Mistral-7B-Instruct-v0.3/ mistral-7b.gguf",
    ("hf", "megatron"): "Mistral-7B-Instruct-v0.3/ mistral-7b-megatron/",
    ("megatron", "hf"): "checkpoints/run-7/ run-7/ --hf-config Mistral-7B-v0.3/",
    ("megatron", "gguf"): "checkpoints/run-7/ run-7.gguf --hf-config Mistral-7B-v0.3/",
    ("gguf", "hf"): "mistral-7b-Q8_0.gguf Mistral-7B/",
    ("gguf", "megatron"): "mistral-7b-BF16.gguf mistral-7b-megatron/",
}


def conversions() -> Iterator[click.Command]:
    """The command of each direction."""
    return (_command(source, target, example) for (source, target), example in _EXAMPLES.items())


def _command(source: str, target: str, example: str) -> click.Command:
    reader, writer = _SOURCES[source], _TARGETS[target]
    name = f"{source}-to-{target}"

    def convert(
        source: Path, output: Path, dry_run: bool, as_json: bool, overwrite: bool, threads: int | None, **more: Any
    ) -> None:
        reading = {"hf_config": more.pop("hf_config")} if hf_config_option in reader.options else {}
        writer.act(reader.act(source, **reading), output, WriteOptions(dry_run, as_json, overwrite, threads), **more)

    about = (f"Write {reader.what} as {writer.what}.", reader.about, writer.about)
    convert.__doc__ = "\n\n".join([*filter(None, about), f"\b\nExample:\n  mconv {name} {example}"])
    parameters: tuple[Option, ...] = (
        threads_option,
        overwrite_option,
        json_option,
        dry_run_option,
        *reversed((*reader.options, *writer.options)),
        click.argument("output", type=path_type, metavar=writer.metavar),
        click.argument("source", type=path_type, metavar=reader.metavar),
    )
    for parameter in parameters:
        parameter(convert)
    return click.command(name)(convert)
