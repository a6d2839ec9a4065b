"""Writing the Hugging Face layout: safetensors shards, then the files that make the folder a checkpoint."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.encodings import encode_floats
from convert.errors import DiskError, MappingError, UsageError
from convert.families import family_named
from convert.families.table import Target
from convert.layouts.safetensors import lay_out_shard
from convert.metadata import Metadata
from convert.plan import Plan
from convert.rearrange import Rows
from convert.run import Output, check_outputs, run
from convert.tensors import Tensor
from convert.tokenizer import Vocabulary
from convert.tokenizer.hf_files import tokenizer_files
from convert.types import BlockType

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "tekken.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
_TORCH_NAMES = {BlockType.F32: "float32", BlockType.F16: "float16", BlockType.BF16: "bfloat16"}
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True)
class FolderPlan:
    """A Hugging Face folder that is not written yet.

    Attributes:
        shards: name to plan of each safetensors file.
        files: name to content of all other files; the index and config.json come last, so that a folder that has them
            is whole.
    """

    shards: Mapping[str, Plan]
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(plan.size for plan in self.shards.values()) + sum(map(len, self.files.values()))


def plan_folder(checkpoint: Checkpoint, kind: BlockType, max_shard_size: int) -> FolderPlan:
    """Decide every file of the folder.

    Args:
        checkpoint: the source.
        kind: F32, F16 or BF16, the type of every tensor.
        max_shard_size: bytes of tensor data in one file; a larger tensor has a file of its own.

    Raises:
        MappingError: transformers has no configuration for such a model.
        SourceError: the tokenizer cannot be written as files.
    """
    targets = [Target(name, tensor.shape, Rows((tensor,))) for name, tensor in checkpoint.tensors.items()]
    groups = _shards(targets, kind, max_shard_size)
    shards = {
        _shard_name(number, len(groups)): lay_out_shard([(target, kind) for target in group])
        for number, group in enumerate(groups, 1)
    }
    vocabulary = checkpoint.vocabulary()
    files = tokenizer_files(vocabulary)
    files["generation_config.json"] = _json(_generation_config(vocabulary, checkpoint.provenance))
    if len(shards) > 1:
        files[_INDEX] = _json(_index(shards))
    files[_CONFIG] = _json(_config(checkpoint, vocabulary, kind))
    return FolderPlan(shards, files)


def source_dtype(tensors: Mapping[str, Tensor]) -> BlockType:
    """The type that a folder gets when nobody says: the 16-bit type of the matrices, else what holds their values.

    Quantized matrices become BF16, in which these models are published.
    """
    dtypes = {tensor.dtype for tensor in tensors.values() if len(tensor.shape) > 1}
    for kind in (BlockType.BF16, BlockType.F16):
        if kind.name in dtypes:
            return kind
    return BlockType.F32 if dtypes <= {"F32"} else BlockType.BF16


def check_folder(folder: Path, plan: FolderPlan, inputs: Iterable[Path], *, overwrite: bool) -> list[Output]:
    """Make the folder if need be, and refuse what could not end well, before anything is written.

    Args:
        inputs: files that are about to be read. None may lie in the folder, for `write_folder` replaces and removes
            more than the shards there.

    Raises:
        UsageError: the folder holds an input.
        DiskError: the folder holds a checkpoint already, cannot be made, or the disk has no room.
    """
    if folder.exists() and not folder.is_dir():
        raise DiskError(f"{folder} is not a folder", "choose another output folder")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise DiskError(f"{folder} is not empty", "choose another folder, or pass --overwrite")
    if not folder.parent.is_dir():
        raise DiskError(f"{folder.parent}: no such folder", "create it first, or choose another output")
    inputs = list(inputs)
    if folder.resolve() in {path.parent.resolve() for path in inputs}:
        raise UsageError(f"{folder} holds what is read", "choose another output folder")
    folder.mkdir(exist_ok=True)
    outputs = [Output(shard, folder / name) for name, shard in plan.shards.items()]
    try:
        check_outputs(outputs, inputs, overwrite=overwrite)
    except (DiskError, UsageError):
        _remove_if_empty(folder)
        raise
    return outputs


def write_folder(outputs: Sequence[Output], plan: FolderPlan, *, threads: int, what: str) -> None:
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
    except BaseException:
        _remove_if_empty(folder)
        raise
    # What an earlier checkpoint in this folder had, and would be read with this one.
    for name in (_CONFIG, _INDEX, *_TOKENIZER_FILES):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("model*.safetensors"):
        if path.name not in plan.shards:
            path.unlink()
    for name, content in plan.files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _shards(targets: Sequence[Target], kind: BlockType, max_size: int) -> list[list[Target]]:
    """Targets in their order, in groups of at most so many bytes."""
    groups: list[list[Target]] = [[]]
    filled = 0
    for target in targets:
        size = target.rows.count * kind.row_bytes(target.shape[-1] if len(target.shape) > 1 else 1)
        if groups[-1] and filled + size > max_size:
            groups.append([])
            filled = 0
        groups[-1].append(target)
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


def _config(checkpoint: Checkpoint, vocabulary: Vocabulary, kind: BlockType) -> dict[str, Any]:
    spec = checkpoint.spec
    write = family_named(spec.family).write_config
    if write is None:
        raise MappingError(f"no configuration can be written for the {spec.family} family", "convert to another layout")
    config = write(spec, _origin(checkpoint.provenance))
    # transformers assumes ids where these are silent.
    config |= {f"{role}_token_id": vocabulary.special_ids.get(role) for role in ("bos", "eos", "pad")}
    return dict(sorted({**config, "dtype": _TORCH_NAMES[kind]}.items()))


def _origin(provenance: Metadata) -> str:
    """The transformers class the model comes from, as far as its provenance tells."""
    known = provenance.get("mconv.source.architecture")
    if known is not None:
        return str(known.content)
    named = (provenance.get(f"general.{key}") for key in ("basename", "name"))
    is_mistral = any("stral" in str(value.content).lower() for value in named if value is not None)
    return "MistralForCausalLM" if is_mistral else ""


def _generation_config(vocabulary: Vocabulary, provenance: Metadata) -> dict[str, Any]:
    ids = vocabulary.special_ids
    config: dict[str, Any] = {f"{role}_token_id": ids[role] for role in ("bos", "eos", "pad") if role in ids}
    if "eot" in ids and ids["eot"] != ids.get("eos"):
        config["eos_token_id"] = sorted({ids["eot"], ids.get("eos", ids["eot"])})
    for key, name in _SAMPLING.items():
        value = provenance.get(f"general.sampling.{key}")
        if value is not None and isinstance(value.content, (int, float)) and math.isfinite(value.content):
            config[name] = round(value.content, 6)
    if any(name in config for name in ("temperature", "top_k", "top_p", "min_p")):
        config["do_sample"] = True
    return config


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
