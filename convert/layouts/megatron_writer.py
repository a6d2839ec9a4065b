"""Writing a torch_dist checkpoint that Megatron-Core loads at any parallelism, in bounded memory.

Layout: Megatron-LM megatron/training/checkpointing.py (tracker file, folder of the iteration, common.pt) over
torch.distributed.checkpoint (see torch_dist.py). Layers and experts are stacked, the vocabulary has no padding: a
checkpoint so written says nothing of ranks. Up to Megatron-Core 0.18 the common state must be in common.pt, and later
ones still read it there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from convert.checkpoint import Checkpoint
from convert.console import byte_progress, format_bytes
from convert.encodings import check_finite
from convert.errors import DiskError, UsageError
from convert.families import family_named
from convert.families.table import Target
from convert.layouts.megatron import TRACKER, is_megatron
from convert.layouts.megatron_arguments import arguments_of
from convert.layouts.megatron_keys import MegatronTensor, megatron_tensors, separate_norm_key
from convert.layouts.pickles import Record, make_record, named, write_pickle
from convert.layouts.torch_dist import DTYPES, INDEX
from convert.layouts.torch_file import write_torch_object, write_torch_tensor
from convert.run import CHUNK_WEIGHTS
from convert.tensors import FLOAT_DTYPES, row_length

RELEASE = "release"
"""What the tracker says of a checkpoint that no training step made."""

# A rank that loads a part of a tensor reads the whole of each chunk that it touches.
_CHUNK_BYTES = 64 << 20
_DATA = "__0_0.distcp"
_CHECKPOINT = "torch.distributed.checkpoint."
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass(frozen=True)
class MegatronPlan:
    """A checkpoint that is not written yet.

    Attributes:
        tensors: in the order of the file.
        common: the common state, of builtins and Records.
    """

    tensors: tuple[MegatronTensor, ...]
    common: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return sum(math.prod(tensor.shape) * FLOAT_DTYPES[tensor.dtype].itemsize for tensor in self.tensors)

    def describe_tensors(self) -> list[dict[str, Any]]:
        """One JSON-ready object a tensor: name, shape, type, bytes."""
        return [
            {
                "name": tensor.key,
                "shape": list(tensor.shape),
                "type": tensor.dtype,
                "bytes": math.prod(tensor.shape) * FLOAT_DTYPES[tensor.dtype].itemsize,
            }
            for tensor in self.tensors
        ]


def plan_megatron(checkpoint: Checkpoint) -> MegatronPlan:
    """The plan of a checkpoint's Megatron-Core form.

    Raises:
        MappingError: see `megatron_tensors`.
    """
    spec = checkpoint.spec
    tensors = megatron_tensors(family_named(spec.family), spec, checkpoint.tensors)
    if spec.experts:
        # Transformer Engine's layers and the local ones disagree on this norm's key; each ignores the other's.
        names = ((separate_norm_key(tensor.key), tensor) for tensor in tensors)
        tensors += [MegatronTensor(name, tensor.leading, tensor.parts) for name, tensor in names if name]
    common = {
        "args": make_record("argparse Namespace", state=arguments_of(spec, tensors[0].dtype)),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "content_metadata": {"singleton_local_shards": False},
    }
    return MegatronPlan(tuple(tensors), common)


def check_folder(plan: MegatronPlan, folder: Path, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse what could not end well, before anything is written.

    Args:
        inputs: files that are about to be read. None may lie in the folder, which is replaced whole.

    Raises:
        UsageError: the folder holds an input.
        DiskError: the folder exists already, its parent does not, or the disk has no room.
    """
    replaced = {folder.resolve(), _partial(folder).resolve()}
    if any(not replaced.isdisjoint(path.parent.resolve().joinpath(path.name).parents) for path in inputs):
        raise UsageError(f"{folder} holds what is read", "choose another output folder")
    if folder.exists() and not (overwrite and is_megatron(folder)):
        hint = "choose another name" if overwrite else "choose another name, or pass --overwrite"
        raise DiskError(f"{folder} exists already" + (" and is no Megatron checkpoint" * overwrite), hint)
    parent = folder.resolve().parent
    if not parent.is_dir():
        raise DiskError(f"{parent}: no such folder", "create it first, or choose another output")
    free = shutil.disk_usage(parent).free
    if plan.size > free:
        raise DiskError(
            f"no room in {parent}: {format_bytes(plan.size)} needed, {format_bytes(free)} free",
            "free some space, or choose another output folder",
        )


def write_megatron(plan: MegatronPlan, folder: Path, companions: Sequence[Path]) -> None:
    """Write the checkpoint: all of it, or none under this name.

    Args:
        folder: what `--load` of Megatron-LM takes: it gets the tracker file and the folder `release`.
        companions: files to copy beside the tracker: config.json and the tokenizer.

    Raises:
        SourceError: a weight is not finite, or the source is truncated.
        OSError: writing failed.
    """
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        release = partial / RELEASE
        release.mkdir(parents=True)
        for path in companions:
            shutil.copyfile(path, partial / path.name)
        with (release / _DATA).open("wb") as out:
            index = _write_weights(plan, folder.name, out)
            _sync(out)
        with (release / "common.pt").open("wb") as out:
            write_torch_object(out, plan.common)
            _sync(out)
        _write_file(release / INDEX, write_pickle(index))
        # Megatron-Core takes a folder without this file for one that was never finished.
        _write_file(release / "metadata.json", json.dumps(_FORMAT).encode())
        _write_file(partial / TRACKER, RELEASE.encode())
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _write_weights(plan: MegatronPlan, what: str, out: BinaryIO) -> Record:
    """Append every chunk, and return the index that says where each one is."""
    listed: dict[str, Record] = {}
    # The keys are objects without a value of their own, which a dict keeps apart.
    stored: dict[Record, Record] = {}
    with byte_progress(plan.size, what) as bar:
        for tensor in plan.tensors:
            chunks = []
            for part, place in zip(tensor.parts, np.ndindex(*tensor.leading), strict=True):
                for start, stop in _row_ranges(part):
                    inner = (stop - start, *part.shape[1:])
                    shape = (*(1 for _ in place), *inner)
                    offsets = (*place, start, *(0 for _ in inner[1:]))
                    begin = out.tell()
                    write_torch_tensor(out, tensor.dtype, shape, _values(part, start, stop))
                    stored[_place(tensor.key, offsets)] = _range(begin, out.tell())
                    chunks.append(_record("metadata ChunkStorageMetadata", offsets=_size(offsets), sizes=_size(shape)))
                    bar.update(math.prod(shape) * FLOAT_DTYPES[tensor.dtype].itemsize)
            listed[tensor.key] = _record(
                "metadata TensorStorageMetadata",
                properties=make_record(_CHECKPOINT + "metadata TensorProperties", state=_properties(tensor.dtype)),
                size=_size(tensor.shape),
                chunks=chunks,
            )
    begin = out.tell()
    write_torch_object(out, [None])
    for key in _extra_states(plan.tensors):
        listed[key] = make_record(_CHECKPOINT + "metadata BytesStorageMetadata", state={})
        stored[_place(key, None)] = _range(begin, out.tell())
    return _record(
        "metadata Metadata",
        state_dict_metadata=listed,
        planner_data=None,
        storage_data=stored,
        storage_meta=None,
        version="1.0.0",
    )


def _row_ranges(part: Target) -> Iterator[tuple[int, int]]:
    row_bytes = row_length(part.shape) * FLOAT_DTYPES[part.rows.dtype].itemsize
    step = max(1, _CHUNK_BYTES // row_bytes)
    return ((start, min(start + step, part.rows.count)) for start in range(0, part.rows.count, step))


def _values(part: Target, start: int, stop: int) -> Iterator[memoryview]:
    step = max(1, CHUNK_WEIGHTS // row_length(part.shape))
    for first in range(start, stop, step):
        rows = np.ascontiguousarray(part.rows.read(first, min(first + step, stop)))
        check_finite(part, rows, first)
        yield rows.data.cast("B")


def _extra_states(tensors: Sequence[MegatronTensor]) -> Iterator[str]:
    """Keys of the states that linear layers keep besides their weights: nothing, unless trained in 8 bits.

    Megatron-Core asks for them by default, and Transformer Engine's attention has one as well.
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


def _record(name: str, **attributes: Any) -> Record:
    return make_record(_CHECKPOINT + name, state=attributes)


def _place(key: str, offsets: tuple[int, ...] | None) -> Record:
    offset = None if offsets is None else _size(offsets)
    return _record("metadata MetadataIndex", fqn=key, offset=offset, index=None)


def _range(begin: int, end: int) -> Record:
    return _record("filesystem _StorageInfo", relative_path=_DATA, offset=begin, length=end - begin)


def _size(lengths: tuple[int, ...]) -> Record:
    return make_record("torch Size", lengths)


def _properties(dtype: str) -> tuple[Any, ...]:
    """dtype, layout, requires_grad, memory format, pin_memory: `TensorProperties.__getstate__`."""
    name = next(name for name, ours in DTYPES.items() if ours == dtype)
    layout = make_record("torch.serialization _get_layout", "torch.strided")
    contiguous = make_record(_CHECKPOINT + "metadata _MEM_FORMAT_ENCODING", 0)
    return (named(name), layout, False, contiguous, False)


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as out:
        out.write(data)
        _sync(out)


def _sync(out: BinaryIO) -> None:
    out.flush()
    os.fsync(out.fileno())
