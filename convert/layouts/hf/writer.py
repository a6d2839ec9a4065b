"""Write the Hugging Face layout: safetensors shards, then the files that make the folder a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mconv.convert.containers.safetensors import lay_out_shard
from mconv.convert.engine.plan import FolderPlan, Plan, TypedTarget, plan_tensor
from mconv.convert.layouts.hf.names import CONFIG, INDEX
from mconv.convert.layouts.hf.sidecars import encode_json, sidecar_files
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.dtypes import main_type, typed_tensors
from mconv.convert.tensors.rows import Rows, Target


def plan_hf(checkpoint: Checkpoint, wanted: BlockType | None, max_shard_size: int) -> FolderPlan:
    """Plan every file of the folder.

    Args:
        checkpoint: the source.
        wanted: F32, F16 or BF16 for every tensor, or None: see `typed_tensors`.
        max_shard_size: maximum bytes of tensor data per file; a larger tensor gets a separate file.

    Raises:
        MappingError: transformers has no configuration for such a model.
        SourceError: the tokenizer cannot be written as files.
    """
    tensors = typed_tensors(checkpoint, wanted)
    typed = [TypedTarget(Target(name, part.shape, Rows((part,))), part.dtype) for name, part in tensors.items()]
    groups = _shards(typed, max_shard_size)
    shards = {_shard_name(number, len(groups)): lay_out_shard(group) for number, group in enumerate(groups, 1)}
    files = sidecar_files(checkpoint, wanted or main_type(tensors))
    config = files.pop(CONFIG)
    index = {INDEX: encode_json(_index(shards))} if len(shards) > 1 else {}
    return FolderPlan(shards, {**files, **index, CONFIG: config})


def _shards(typed: Sequence[TypedTarget], max_size: int) -> list[list[TypedTarget]]:
    """The tensors, in order, in groups of at most `max_size` bytes."""
    groups: list[list[TypedTarget]] = [[]]
    filled = 0
    for each in typed:
        size = plan_tensor(each.target, each.encoding, 0).size
        if groups[-1] and filled + size > max_size:
            groups.append([])
            filled = 0
        groups[-1].append(each)
        filled += size
    return groups


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _index(shards: Mapping[str, Plan]) -> dict[str, Any]:
    total = sum(tensor.size for plan in shards.values() for tensor in plan.tensors)
    parameters = sum(plan.parameters for plan in shards.values())
    weight_map = {tensor.target.name: name for name, plan in shards.items() for tensor in plan.tensors}
    return {
        "metadata": {"total_parameters": parameters, "total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
