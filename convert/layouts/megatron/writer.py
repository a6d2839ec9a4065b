"""Write a torch_dist checkpoint that Megatron-Core loads at any parallelism, in bounded memory.

Layout: Megatron-LM megatron/training/checkpointing.py (tracker file, folder of the iteration, common.pt) over
torch.distributed.checkpoint (see torch_dist.py). Layers and experts are stacked and the vocabulary has no padding, so
the checkpoint does not depend on ranks. Up to Megatron-Core 0.18 the common state must be in common.pt, and later
versions still read it there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mconv.convert.containers.pickles import make_record
from mconv.convert.containers.torch_dist import INDEX
from mconv.convert.containers.torch_dist_index import IndexWriter
from mconv.convert.containers.torch_zip import TensorZip, encode_torch_object
from mconv.convert.engine.plan import FolderPlan, Plan, PlannedTensor, plan_tensor
from mconv.convert.families import family_named
from mconv.convert.layouts.hf.sidecars import sidecar_files
from mconv.convert.layouts.megatron.arguments import arguments_of
from mconv.convert.layouts.megatron.keys import separate_norm_key
from mconv.convert.layouts.megatron.mapping import MegatronTensor, megatron_tensors
from mconv.convert.layouts.megatron.reader import TRACKER
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.dtypes import main_type, typed_tensors
from mconv.convert.tensors.nodes import FLOAT_DTYPES, row_length
from mconv.convert.tensors.rows import Target

RELEASE = "release"
"""The content of the tracker file for a checkpoint that does not come from a training step."""

# A rank that loads a part of a tensor reads the whole of each chunk that it touches.
_CHUNK_BYTES = 64 << 20
_DATA = "__0_0.distcp"
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


def plan_megatron(checkpoint: Checkpoint, wanted: BlockType | None) -> FolderPlan:
    """Plan every file of a checkpoint in Megatron-Core's format.

    Args:
        checkpoint: the source.
        wanted: F32, F16 or BF16 for every tensor, or None: see `typed_tensors`.

    Raises:
        MappingError: see `megatron_tensors` and `sidecar_files`.
        SourceError: the tokenizer cannot be written as files.
    """
    spec = checkpoint.spec
    tensors = typed_tensors(checkpoint, wanted)
    kind = wanted or main_type(tensors)
    stacked = megatron_tensors(family_named(spec.family), spec, tensors)
    if spec.experts:
        # Transformer Engine's layers and the local ones use different keys for this norm; each ignores the other's.
        names = ((separate_norm_key(tensor.key), tensor) for tensor in stacked)
        stacked += [MegatronTensor(name, tensor.leading, tensor.parts) for name, tensor in names if name]
    plan, index = _lay_out(stacked)
    files = {
        **sidecar_files(checkpoint, kind),
        f"{RELEASE}/common.pt": encode_torch_object(_common(spec, kind)),
        f"{RELEASE}/{INDEX}": index,
        # Megatron-Core treats a folder without this file as incomplete.
        f"{RELEASE}/metadata.json": json.dumps(_FORMAT).encode(),
        TRACKER: RELEASE.encode(),
    }
    return FolderPlan({f"{RELEASE}/{_DATA}": plan}, files)


def _common(spec: ModelSpec, kind: BlockType) -> dict[str, Any]:
    return {
        "args": make_record("argparse Namespace", state=arguments_of(spec, kind.name)),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "content_metadata": {"singleton_local_shards": False},
    }


def _lay_out(tensors: Sequence[MegatronTensor]) -> tuple[Plan, bytes]:
    """The plan of the single weight file, with a torch.save zip for each chunk, and the index of the chunks."""
    # The extra state of every module is empty, so one object at the start of the file serves all of them.
    nothing = encode_torch_object([None])
    index = IndexWriter(_DATA)
    for key in _extra_states(tensors):
        index.add_object(key, 0, len(nothing))
    planned: list[PlannedTensor] = []
    end = 0
    for tensor in tensors:
        index.add_tensor(tensor.key, tensor.dtype, tensor.shape)
        for target, offsets, shape in _chunks(tensor):
            zipped = TensorZip(tensor.dtype, shape)
            chunk = plan_tensor(target, tensor.dtype, end + zipped.before, envelope=zipped)
            begin, end = end, end + zipped.before + chunk.size + zipped.after
            index.add_chunk(tensor.key, offsets, shape, len(nothing) + begin, len(nothing) + end)
            planned.append(chunk)
    return Plan(nothing, tuple(planned), len(nothing) + end), index.encode()


def _chunks(tensor: MegatronTensor) -> Iterator[tuple[Target, tuple[int, ...], tuple[int, ...]]]:
    """The chunks of a stack, each with its offsets and lengths along all axes of the stack."""
    for part, place in zip(tensor.parts, np.ndindex(*tensor.leading), strict=True):
        for start, stop in _row_ranges(part):
            inner = (stop - start, *part.shape[1:])
            offsets = (*place, start, *(0 for _ in inner[1:]))
            name = f"{tensor.key}[{', '.join(map(str, offsets))}]"
            yield Target(name, inner, part.rows.part(start, stop)), offsets, (*(1 for _ in place), *inner)


def _row_ranges(part: Target) -> Iterator[tuple[int, int]]:
    row_bytes = row_length(part.shape) * FLOAT_DTYPES[part.rows.dtype].itemsize
    step = max(1, _CHUNK_BYTES // row_bytes)
    return ((start, min(start + step, part.rows.count)) for start in range(0, part.rows.count, step))


def _extra_states(tensors: Sequence[MegatronTensor]) -> Iterator[str]:
    """Keys of the extra states of linear layers, which are empty unless the model was trained in 8 bits.

    Megatron-Core requires them by default, and Transformer Engine's attention has one as well.
    """
    layers = next(tensor.leading for tensor in tensors if tensor.leading)[:1]
    modules = [("decoder.layers.self_attention.core_attention", layers)]
    for tensor in tensors:
        module, _, parameter = tensor.key.rpartition(".")
        if parameter == "weight" and ".linear_" in module:
            modules.append((module, tensor.leading))
    for module, leading in modules:
        whole = ".".join(map(str, leading))
        for place in np.ndindex(*leading):
            yield f"{module}._extra_state/shard_{'.'.join(map(str, place))}_{whole}"
