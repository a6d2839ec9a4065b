"""Megatron-LM's legacy `torch` format, one file per rank, presented like a torch_dist checkpoint.

Layout: Megatron-LM megatron/training/checkpointing.py, `get_checkpoint_name`: `mp_rank_TT[_PPP][_EEE]` of tensor,
pipeline and expert rank, with `model_optim_rng.pt` inside. Each holds the layers of its pipeline stage, numbered from
0, and of each tensor the part of its tensor rank. Which axis was cut follows from its role.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, product
from pathlib import Path
from typing import Any

from mconv.convert.containers.pickles import Record
from mconv.convert.containers.torch_dist import Chunk, ChunkedTensor
from mconv.convert.containers.torch_zip import StoredArray, TorchZip, open_file
from mconv.convert.errors import FormatError, SourceError
from mconv.convert.layouts.megatron import RANK_FOLDERS
from mconv.convert.layouts.megatron.keys import canonical_key, cut_of
from mconv.convert.tensors.files import SourceFile
from mconv.convert.tensors.nodes import FLOAT_DTYPES
from mconv.convert.tensors.plain import plain

_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
_FILES = ("model_optim_rng.pt", "model_rng.pt")
_CHUNK_OF_STAGE = re.compile(r"model(\d*)")
_LAYER = re.compile(r"(?<=^decoder\.layers\.)\d+")
# SequentialMLP, TEGroupedMLP, and what torch_dist calls both.
_LOCAL_EXPERT = re.compile(r"\.experts\.local_experts\.(\d+)\.(linear_fc\d)\.weight$")
_GROUPED_EXPERT = re.compile(r"\.experts\.(linear_fc\d)\.weight(\d+)$")
# GroupedMLP, up to Megatron-Core 0.16.
_STACKED_EXPERTS = re.compile(r"\.experts\.weight([12])$")
_EXPERTS = ".experts.experts."

Rank = tuple[int, int, int]
"""Tensor, pipeline and expert rank."""


@plain
@dataclass(frozen=True)
class _Values:
    """Values in a rank's file: a `Stored` of torch_dist."""

    file: SourceFile
    source: str
    tensor: StoredArray


@dataclass(frozen=True)
class _RankFile:
    """The file of one rank: its settings, and the model's tensors by chunk of its stage and by key."""

    arguments: Mapping[str, Any]
    chunks: Mapping[int, Mapping[str, _Values]]

    def layers(self, chunk: int) -> int:
        """How many layers a chunk of the stage has."""
        numbers = [int(found[0]) for key in self.chunks.get(chunk, {}) if (found := _LAYER.search(key))]
        return max(numbers, default=-1) + 1


def read_ranks(folder: Path) -> tuple[dict[str, ChunkedTensor], Mapping[str, Any]]:
    """The model's tensors by key, each layer and expert under its own number, and the settings of the run.

    Raises:
        SourceError: a rank is missing, or a file is truncated.
        FormatError: a file is not what Megatron-LM writes, or its pickle uses a name that is not allowed.
    """
    ranks = _open_ranks(folder)
    arguments = next(iter(ranks.values())).arguments
    tensor, pipeline, expert = (max(places) + 1 for places in zip(*ranks, strict=True))
    # Experts may be split into fewer parts than other tensors; then some combinations of rank numbers do not exist.
    expert_tensor = _size(arguments, "expert_tensor_parallel_size") or tensor
    dense = {rank[:2] for rank in ranks}
    experts = {(rank[0] % expert_tensor, *rank[1:]) for rank in ranks}
    for rank in product(range(tensor), range(pipeline), range(expert)):
        if rank[:2] not in dense or (rank[0] % expert_tensor, *rank[1:]) not in experts:
            raise SourceError(
                f"{folder}: no file of tensor rank {rank[0]}, pipeline rank {rank[1]}, expert rank {rank[2]}",
                "copy the folders of every rank",
            )
    stages = {rank[1]: saved for rank, saved in ranks.items()}
    pieces: dict[str, dict[int, _Values]] = defaultdict(dict)
    for rank, saved in ranks.items():
        for key, values in _numbered(rank, saved, stages, expert):
            # Ranks with the same part have the same values.
            pieces[key].setdefault(rank[0] % expert_tensor if _EXPERTS in key else rank[0], values)
    tensors = {key: _joined(key, [parts[place] for place in sorted(parts)]) for key, parts in pieces.items()}
    return tensors, arguments


def _open_ranks(folder: Path) -> dict[Rank, _RankFile]:
    ranks: dict[Rank, _RankFile] = {}
    for path in sorted(folder.glob(RANK_FOLDERS)):
        name = _FOLDER.fullmatch(path.name)
        if name is None:
            raise FormatError(f"{path.name} is not the name of a rank", "name the folders mp_rank_TT[_PPP][_EEE]")
        saved = _read_rank(path)
        tensor, second, third = (int(number or 0) for number in name.groups())
        pipelined = _size(saved.arguments, "pipeline_model_parallel_size") > 1 or name[3] is not None
        ranks[(tensor, second, third) if pipelined else (tensor, 0, second)] = saved
    return ranks


def _size(arguments: Mapping[str, Any], name: str) -> int:
    """The size of a parallel group, from the settings of a run; 0 if unknown."""
    value = arguments.get(name)
    return value if isinstance(value, int) and value > 0 else 0


def _read_rank(folder: Path) -> _RankFile:
    path = next((folder / name for name in _FILES if (folder / name).is_file()), folder / _FILES[0])
    file = open_file(path)
    source = f"{folder.name}/{path.name}"
    zipped = TorchZip(file, 0, file.size, source)
    if not isinstance(zipped.value, dict):
        raise FormatError(f"{source} does not contain a dict", "the file is not what Megatron-LM writes")
    saved = zipped.value.get("args")
    arguments = saved.state if isinstance(saved, Record) and isinstance(saved.state, dict) else {}
    chunks: dict[int, dict[str, _Values]] = {}
    for name, state in zipped.value.items():
        number = _CHUNK_OF_STAGE.fullmatch(name) if isinstance(name, str) else None
        if number is None:
            continue
        values = state.items if isinstance(state, Record) else state
        if (
            not isinstance(values, dict)
            or "language_model" in values
            or not all(isinstance(key, str) for key in values)
        ):
            raise FormatError(
                f"{source}: the model is from before Megatron-Core",
                "convert it to Megatron-Core with Megatron-LM first",
            )
        chunks[int(number[1] or 0)] = {
            canonical_key(key): _Values(file, f"{source}, {key}", zipped.array(value))
            for key, value in values.items()
            if value is not None and not key.endswith("_extra_state")
        }
    if not chunks:
        raise FormatError(f"{source} does not contain a model", "the file is not what Megatron-LM writes")
    return _RankFile(arguments, chunks)


def _numbered(
    rank: Rank, saved: _RankFile, stages: Mapping[int, _RankFile], expert_ranks: int
) -> Iterator[tuple[str, _Values]]:
    """The tensors of a rank, with the numbers that layers and experts have in the whole model.

    Args:
        stages: a rank of each stage of the pipeline.
        expert_ranks: how many ranks share the experts.
    """
    # With virtual stages, all first chunks of the stages come before all second ones.
    order = list(product(sorted(saved.chunks), sorted(stages)))
    counts = [stages[stage].layers(chunk) for chunk, stage in order]
    first_layers = dict(zip(order, accumulate(counts, initial=0), strict=False))
    for chunk, stored in saved.chunks.items():
        values = dict(_apart(stored, expert_ranks))
        first_layer = first_layers[chunk, rank[1]]
        experts = {int(found[0]) for key in values if (found := _expert(key))}
        first_expert = rank[2] * len(experts)
        for key, value in values.items():
            if layer := _LAYER.search(key):
                key = f"{key[: layer.start()]}{first_layer + int(layer[0])}{key[layer.end() :]}"
            expert = _expert(key)
            if expert:
                head = key[: key.rindex(".experts.")]
                key = f"{head}{_EXPERTS}{first_expert + expert[0]}.{expert[1]}.weight"
            yield key, value


def _apart(stored: Mapping[str, _Values], expert_ranks: int) -> Iterator[tuple[str, _Values]]:
    """The tensors of a rank; those of GroupedMLP, which contain all experts of the rank, are split by expert.

    Layout: megatron/core/transformer/moe/experts.py, `GroupedMLP`. One matrix after the other, with columns where the
    other modules have rows; the shapes [hidden, experts * 2 * ffn] and [experts * ffn, hidden] are names only.
    """
    for key, value in stored.items():
        found = _STACKED_EXPERTS.search(key)
        if found is None:
            yield key, value
            continue
        router = stored.get(key[: found.start()] + ".router.weight")
        count = router.tensor.shape[0] // expert_ranks if router is not None and router.tensor.shape else 0
        whole, by_columns = value.tensor, found[1] == "1"
        if len(whole.shape) != 2 or not count or whole.shape[by_columns] % count:
            raise FormatError(
                f"{value.source} does not have one matrix per expert", "copy all files from the same checkpoint"
            )
        hidden, width = whole.shape[not by_columns], whole.shape[by_columns] // count
        size = hidden * width * FLOAT_DTYPES[whole.dtype].itemsize
        shape = (width, hidden) if by_columns else (hidden, width)
        for number in range(count):
            part = StoredArray(whole.dtype, shape, whole.offset + number * size, pitch=shape[0])
            name = f"{key[: found.start()]}.experts.local_experts.{number}.linear_fc{found[1]}.weight"
            yield name, replace(value, tensor=part)


def _expert(key: str) -> tuple[int, str] | None:
    """The number of the expert on its rank, and the linear layer; None for keys that do not belong to an expert."""
    if found := _LOCAL_EXPERT.search(key):
        return int(found[1]), found[2]
    if found := _GROUPED_EXPERT.search(key):
        return int(found[2]), found[1]
    return None


def _joined(key: str, parts: list[_Values]) -> ChunkedTensor:
    """The parts of all tensor ranks as one tensor."""
    first = parts[0].tensor
    if any((part.tensor.dtype, part.tensor.shape) != (first.dtype, first.shape) for part in parts):
        raise FormatError(
            f"{key}: the ranks hold parts of different shapes", "the files belong to different checkpoints"
        )
    axis, fused = cut_of(key)
    if axis is None or len(parts) == 1:
        return ChunkedTensor(key, first.dtype, first.shape, (Chunk((0,) * len(first.shape), first.shape, parts[0]),))
    shape = tuple(length * len(parts) if place == axis else length for place, length in enumerate(first.shape))
    # Concatenated tensors, such as gate and up, were split over the ranks one by one.
    step = first.shape[axis] // fused
    part_shape = tuple(step if place == axis else length for place, length in enumerate(first.shape))
    chunks = []
    for number, part in enumerate(parts):
        for half in range(fused):
            start = tuple(
                (half * len(parts) + number) * step if place == axis else 0 for place in range(len(first.shape))
            )
            chunks.append(Chunk(start, part_shape, _rows(part, half, fused)))
    return ChunkedTensor(key, first.dtype, shape, tuple(chunks))


def _rows(part: _Values, number: int, count: int) -> _Values:
    """One of several equal ranges of a part's rows."""
    height = part.tensor.shape[0] // count
    return replace(part, tensor=part.tensor.rows(number * height, height))
