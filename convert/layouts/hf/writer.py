"""Writing the Hugging Face layout: safetensors shards, then the files that make the folder a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mconv.convert.containers.safetensors import lay_out_shard
from mconv.convert.engine.folder import FolderPlan, write_files
from mconv.convert.engine.local import Output, check_outputs, run
from mconv.convert.engine.partial import PARTIAL, discard
from mconv.convert.engine.plan import Plan
from mconv.convert.errors import DiskError, UsageError
from mconv.convert.layouts.hf.sidecars import CONFIG, TOKENIZER_FILES, encode_json, sidecar_files
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.dtypes import main_type, typed_tensors
from mconv.convert.tensors.encodings import encode_floats
from mconv.convert.tensors.nodes import row_length
from mconv.convert.tensors.rows import Rows, Target

_INDEX = "model.safetensors.index.json"

Typed = tuple[Target, BlockType]


def plan_hf(checkpoint: Checkpoint, wanted: BlockType | None, max_shard_size: int) -> FolderPlan:
    """Decide every file of the folder.

    Args:
        checkpoint: the source.
        wanted: F32, F16 or BF16 for every tensor, or None: see `typed_tensors`.
        max_shard_size: bytes of tensor data in one file; a larger tensor has a file of its own.

    Raises:
        MappingError: transformers has no configuration for such a model.
        SourceError: the tokenizer cannot be written as files.
    """
    tensors = typed_tensors(checkpoint, wanted)
    typed = [(Target(name, part.shape, Rows((part,))), BlockType[part.dtype]) for name, part in tensors.items()]
    groups = _shards(typed, max_shard_size)
    shards = {_shard_name(number, len(groups)): lay_out_shard(group) for number, group in enumerate(groups, 1)}
    files = sidecar_files(checkpoint, wanted or main_type(tensors))
    config = files.pop(CONFIG)
    index = {_INDEX: encode_json(_index(shards))} if len(shards) > 1 else {}
    return FolderPlan(shards, {**files, **index, CONFIG: config})


def check_folder(folder: Path, plan: FolderPlan, inputs: Iterable[Path], *, overwrite: bool) -> list[Output]:
    """Make the folder if need be, and refuse what could not end well, before anything is written.

    Args:
        inputs: files that are about to be read. None may lie in the folder, for `write_hf` replaces and removes more
            than the shards there.

    Raises:
        UsageError: the folder holds an input.
        DiskError: the folder holds a checkpoint already, cannot be made, or the disk has no room.
    """
    if folder.exists() and not folder.is_dir():
        raise DiskError(f"{folder} is not a folder", "choose another output folder")
    if not folder.parent.is_dir():
        raise DiskError(f"{folder.parent}: no such folder", "create it first, or choose another output")
    inputs = list(inputs)
    if folder.resolve() in {path.parent.resolve() for path in inputs}:
        raise UsageError(f"{folder} holds what is read", "choose another output folder")
    # What a killed run left is no hindrance.
    for path in folder.glob(f"model*.safetensors{PARTIAL}"):
        discard(path)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise DiskError(f"{folder} is not empty", "choose another folder, or pass --overwrite")
    folder.mkdir(exist_ok=True)
    outputs = [Output(shard, folder / name) for name, shard in plan.weights.items()]
    try:
        check_outputs(outputs, inputs, overwrite=overwrite)
    except (DiskError, UsageError):
        _remove_if_empty(folder)
        raise
    return outputs


def write_hf(outputs: Sequence[Output], plan: FolderPlan, *, threads: int, what: str) -> None:
    """Write every file. Until the last one is there, the folder has no config.json and passes for no checkpoint.

    Args:
        outputs: the shards, from `check_folder`.
        plan: the folder.
        threads: how many row ranges are worked on at once.
        what: label of the progress bar.

    Raises:
        SourceError: a weight is not finite, or the source is truncated.
        QuantizationError: a value is beyond the range of the type.
        OSError: writing failed.
    """
    folder = outputs[0].path.parent
    try:
        run(outputs, encode_floats, threads=threads, what=what)
        _write_rest(folder, plan)
    except BaseException:
        _remove_if_empty(folder)
        raise


def _write_rest(folder: Path, plan: FolderPlan) -> None:
    """What makes weights a checkpoint; if that fails, they are taken away again."""
    try:
        # What an earlier checkpoint in this folder had, and would be read with this one.
        for pattern in (CONFIG, _INDEX, *TOKENIZER_FILES, "model*.safetensors"):
            for path in folder.glob(pattern):
                if path.name not in plan.weights:
                    path.unlink()
        write_files(folder, plan.files)
    except BaseException:
        for name in (*plan.weights, *plan.files):
            # Whatever stands in the way of one stays.
            with suppress(OSError):
                (folder / name).unlink()
        raise


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _shards(typed: Sequence[Typed], max_size: int) -> list[list[Typed]]:
    """Tensors in their order, in groups of at most so many bytes."""
    groups: list[list[Typed]] = [[]]
    filled = 0
    for target, kind in typed:
        size = target.rows.count * kind.row_bytes(row_length(target.shape))
        if groups[-1] and filled + size > max_size:
            groups.append([])
            filled = 0
        groups[-1].append((target, kind))
        filled += size
    return groups


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _index(shards: Mapping[str, Plan]) -> dict[str, Any]:
    total = sum(tensor.info.size for plan in shards.values() for tensor in plan.tensors)
    parameters = sum(plan.parameters for plan in shards.values())
    weight_map = {tensor.target.name: name for name, plan in shards.items() for tensor in plan.tensors}
    return {
        "metadata": {"total_parameters": parameters, "total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
