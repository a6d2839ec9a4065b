"""What is to be quantized: a Hugging Face folder, a Megatron checkpoint or a GGUF file, seen as the unquantized
GGUF file that it is or would be."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.containers.gguf import DEFAULT_ALIGNMENT
from mconv.convert.containers.gguf_split import read_gguf_model
from mconv.convert.errors import FormatError, MappingError
from mconv.convert.layouts import open_checkpoint
from mconv.convert.layouts.gguf.architecture import architecture_of, full_key
from mconv.convert.layouts.gguf.names import role_of
from mconv.convert.layouts.gguf.writer import model_metadata, model_targets, not_carried, stays_float32
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.model.fields import EXPERTS, HEADS, KV_HEADS, LAYERS
from mconv.convert.model.metadata import Metadata
from mconv.convert.model.provenance import folder_name
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.rows import Rows, Target
from mconv.quantize.assign import SourceTensor
from mconv.quantize.filetypes import FileType
from mconv.quantize.mixture import ModelFacts

# The rules of the mixtures are known for these alone.
_ARCHITECTURES = ("llama", "mistral3")
_PART_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")
# The type in the name of the source gives way to the new one.
_TYPE_SUFFIX = re.compile(rf"[-._]({'|'.join(FileType.__members__)}|FP16|FP32)$", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A model before quantization.

    Attributes:
        stem: what the names of the quantized files begin with.
        targets: tensors by GGUF name, with where their rows come from.
        tensors: the same, with the type that the unquantized file has each in.
        metadata: key-value pairs of the unquantized file; the file type is set by each plan.
        model: what the mixtures look at.
        alignment: of the file.
        files: what it is read from.
        notes: what a user should know.
    """

    stem: str
    targets: Mapping[str, Target]
    tensors: Sequence[SourceTensor]
    metadata: Metadata
    model: ModelFacts
    alignment: int
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def open_source(path: Path, hf_config: Path | None = None) -> Source:
    """Open a Hugging Face folder, a Megatron-Core checkpoint, a GGUF file or the first part of a split one.

    No weight is read.

    Args:
        hf_config: see `open_megatron`; nothing else has use for it.

    Raises:
        SourceError, FormatError, MappingError, UsageError: see `open_checkpoint` and `read_gguf_model`.
    """
    if hf_config is None and (path.is_file() or path.suffix == ".gguf"):
        return _open_gguf(path)
    return _open_checkpoint(path, open_checkpoint(path, hf_config=hf_config))


def _open_checkpoint(path: Path, checkpoint: Checkpoint) -> Source:
    targets = {target.name: target for target in model_targets(checkpoint)}
    return Source(
        stem=folder_name(path),
        targets=targets,
        tensors=[
            _tensor(target, BlockType.F32 if stays_float32(target) else BlockType[target.rows.dtype])
            for target in targets.values()
        ],
        metadata=model_metadata(checkpoint, file_type=0),
        model=_facts_of_spec(path, checkpoint.spec),
        alignment=DEFAULT_ALIGNMENT,
        files=checkpoint.files,
        notes=(*checkpoint.notes, *not_carried(checkpoint.spec), *checkpoint.vocabulary().notes),
    )


def _open_gguf(path: Path) -> Source:
    file = read_gguf_model(path)
    if not file.tensors:
        raise FormatError(f"{path.name} has no tensors", "give a whole model, not a vocabulary")
    targets = {
        tensor.name: Target(tensor.name, tensor.shape, Rows((tensor,)), role_of(tensor.name)) for tensor in file.tensors
    }
    return Source(
        stem=_TYPE_SUFFIX.sub("", _PART_SUFFIX.sub("", path.stem)),
        targets=targets,
        tensors=[_tensor(target, BlockType[target.rows.dtype]) for target in targets.values()],
        metadata=file.metadata,
        model=_facts_of_file(path, file.metadata),
        alignment=file.alignment,
        files=(path, *{tensor.file.path for tensor in file.tensors}),
    )


def _tensor(target: Target, stored: BlockType) -> SourceTensor:
    return SourceTensor(target.name, target.shape, stored, target.role)


def _facts_of_spec(path: Path, spec: ModelSpec) -> ModelFacts:
    architecture = _with_mixtures(path, architecture_of(spec.family))
    return ModelFacts(architecture, spec.layers, spec.heads, spec.kv_heads, spec.experts)


def _facts_of_file(path: Path, metadata: Metadata) -> ModelFacts:
    """What a mixture looks at, for files that need not be whole models of a family here."""
    value = metadata.get("general.architecture")
    architecture = _with_mixtures(path, value.content if value else None)
    facts: dict[str, int] = {}
    for field in (LAYERS, HEADS, KV_HEADS, EXPERTS):
        key = full_key(field.gguf[0], architecture)
        value = metadata.get(key)
        content = value.content if value else field.default(facts) if field.default else None
        if isinstance(content, list):  # one for each layer
            content = content[0] if content else None
        if not isinstance(content, int):
            raise FormatError(f"{path.name}: {key} is missing", "the file is damaged; convert it again")
        facts[field.name] = content
    return ModelFacts(architecture, **facts)


def _with_mixtures(path: Path, architecture: Any) -> str:
    if architecture not in _ARCHITECTURES:
        raise MappingError(
            f"{path.name}: architecture {architecture!r} is not supported",
            f"supported GGUF architectures: {', '.join(_ARCHITECTURES)}",
        )
    return str(architecture)
