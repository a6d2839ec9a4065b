"""`hf-to-gguf`, `megatron-to-hf` and so on: one command for each pair of layouts, with the options of both.

The commands are generated from the layouts (`convert/layouts/`): the first opens the source, the second plans and
writes the target.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mconv.convert.cli.console import emit_json
from mconv.convert.cli.options import WriteOptions, layout_option, path_type, write_options
from mconv.convert.cli.output import describe, print_tensors
from mconv.convert.layouts import layouts
from mconv.convert.layouts.layout import Layout
from mconv.convert.reporting import format_bytes, note

if TYPE_CHECKING:
    from mconv.convert.conversion import Conversion
    from mconv.convert.engine.plan import FolderPlan, Plan


def conversions() -> Iterator[click.Command]:
    """One command for each direction."""
    return (_command(source, target) for source, target in permutations(layouts().values(), 2))


def _command(source: Layout, target: Layout) -> click.Command:
    def convert(source_path: Path, target_path: Path, **given: Any) -> None:
        writing = WriteOptions.take_from(given)
        reading = {option.name: given.pop(option.name) for option in source.read_options}
        _convert(source, source_path, reading, target, target_path, given, writing)

    name = f"{source.name}-to-{target.name}"
    about = (f"Write {source.title} as {target.title}.", source.source_help, target.target_help)
    example = f"mconv {name} {_example(source, target)}"
    convert.__doc__ = "\n\n".join([*filter(None, about), f"\b\nExample:\n  {example}"])
    command = write_options(convert)
    for option in reversed((*source.read_options, *target.write_options)):
        command = layout_option(option)(command)
    command = click.argument("target_path", type=path_type, metavar=target.target_name)(command)
    command = click.argument("source_path", type=path_type, metavar=source.source_name)(command)
    return click.command(name)(command)


def _example(source: Layout, target: Layout) -> str:
    path, _, options = source.source_example.partition(" ")
    return " ".join(filter(None, (path, target.target_example, options)))


def _convert(
    source: Layout,
    source_path: Path,
    reading: dict[str, Any],
    target: Layout,
    target_path: Path,
    options: dict[str, Any],
    writing: WriteOptions,
) -> None:
    from mconv.convert.conversion import plan_conversion
    from mconv.convert.engine.local import LocalExecutor
    from mconv.convert.engine.progress import tell_progress
    from mconv.convert.hub import resolve_source

    path = resolve_source(source_path) if source.hub_files else source_path
    checkpoint = source.open(path, **source.resolve_read(**reading))
    conversion = plan_conversion(checkpoint, target, target_path, **options)
    for line in conversion.planned.notes:
        note(line)
    if not writing.dry_run:
        conversion.check(overwrite=writing.overwrite)
        with tell_progress(target_path.name) as on_progress:
            conversion.run(
                executor=LocalExecutor(writing.threads),
                overwrite=writing.overwrite,
                keep_partial=writing.keep_partial,
                on_progress=on_progress,
            )
    _report(conversion, writing)


def _report(conversion: Conversion, writing: WriteOptions) -> None:
    from mconv.convert.engine.plan import Plan

    plan = conversion.planned.plan
    if isinstance(plan, Plan):
        _report_file(plan, conversion, writing)
    else:
        _report_folder(plan, conversion, writing)


def _report_file(plan: Plan, conversion: Conversion, writing: WriteOptions) -> None:
    if writing.as_json:
        emit_json({"files": [describe(plan, conversion.path, conversion.planned.main_type, writing.dry_run)]})
        return
    if writing.dry_run:
        print_tensors(plan.describe_tensors())
    bits = f"{plan.bits_per_weight:.2f} bits per weight"
    click.echo(f"{writing.verb} {conversion.path}: {plan.size} bytes ({format_bytes(plan.size)}), {bits}")


def _report_folder(plan: FolderPlan, conversion: Conversion, writing: WriteOptions) -> None:
    """Report the weight files and the other files of a folder."""
    folder, kind = conversion.path, conversion.planned.main_type
    if writing.as_json:
        files = [describe(weights, folder / name, kind, writing.dry_run) for name, weights in plan.weights.items()]
        others = [{"path": str(folder / name), "bytes": len(content)} for name, content in plan.files.items()]
        emit_json({"folder": str(folder), "bytes": plan.size, "files": files, "other_files": others})
        return
    if writing.dry_run:
        print_tensors(row for weights in plan.weights.values() for row in weights.describe_tensors())
    shards = f"{len(plan.weights)} file{'s'[: len(plan.weights) != 1]} of weights"
    click.echo(f"{writing.verb} {folder}: {plan.size} bytes ({format_bytes(plan.size)}), {kind}, {shards}")
