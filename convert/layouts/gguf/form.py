"""A checkpoint as an unquantized GGUF file, whether it is one or would become one: the input of quantization."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mconv.convert.containers.gguf import DEFAULT_ALIGNMENT
from mconv.convert.containers.gguf_split import read_gguf_model
from mconv.convert.errors import FormatError
from mconv.convert.layouts import detect_layout, open_checkpoint
from mconv.convert.layouts.gguf.architecture import architecture_of, full_key
from mconv.convert.layouts.gguf.names import role_of
from mconv.convert.layouts.gguf.writer import model_metadata, model_targets, not_carried, stays_float32
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.model.fields import EXPERTS, HEADS, KV_HEADS, LAYERS
from mconv.convert.model.metadata import Metadata
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.rows import Rows, Target


@dataclass(frozen=True)
class FormTensor:
    """A tensor of the file: where its rows come from, and its type in the file."""

    target: Target
    type: BlockType


@dataclass(frozen=True)
class GgufForm:
    """A model as an unquantized GGUF file.

    Attributes:
        path: the path that it was opened from.
        architecture: `general.architecture`.
        layers, heads, kv_heads, experts: hyperparameters; if a file lists one per layer, those of the first layer.
        tensors: the tensors in file order.
        metadata: key-value pairs; the writer of a file sets `general.file_type`.
        alignment: the alignment of the file.
        files: the files that it is read from.
        notes: information for the user.
    """

    path: Path
    architecture: str
    layers: int
    heads: int
    kv_heads: int
    experts: int
    tensors: tuple[FormTensor, ...]
    metadata: Metadata = field(repr=False)
    alignment: int
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def open_form(path: Path, **reading: Any) -> GgufForm:
    """Open a checkpoint of any layout. No weight is read.

    A GGUF file is used unchanged: it does not have to be a complete model of a supported family.

    Args:
        reading: read options of its layout, see `open_checkpoint`.

    Raises:
        SourceError, FormatError, MappingError, UsageError: see `open_checkpoint` and `read_gguf_model`.
    """
    is_file = path.suffix == ".gguf" if not path.exists() else detect_layout(path).name == "gguf"
    if is_file and not any(reading.values()):
        return _form_of_file(path)
    return form_of(open_checkpoint(path, **reading))


def form_of(checkpoint: Checkpoint) -> GgufForm:
    """The GGUF file that a checkpoint would become.

    Raises:
        SourceError, FormatError, MappingError: see `model_targets` and `model_metadata`.
    """
    spec = checkpoint.spec
    targets = model_targets(checkpoint)
    return GgufForm(
        path=checkpoint.path,
        architecture=architecture_of(spec.family),
        layers=spec.layers,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        experts=spec.experts,
        tensors=tuple(
            FormTensor(target, BlockType.F32 if stays_float32(target) else BlockType[target.rows.dtype])
            for target in targets
        ),
        metadata=model_metadata(checkpoint, file_type=0),
        alignment=DEFAULT_ALIGNMENT,
        files=checkpoint.files,
        notes=(*checkpoint.notes, *not_carried(spec), *checkpoint.vocabulary().notes),
    )


def _form_of_file(path: Path) -> GgufForm:
    file = read_gguf_model(path)
    if not file.tensors:
        raise FormatError(f"{path.name} has no tensors", "give a complete model, not a vocabulary")
    targets = (Target(each.name, each.shape, Rows((each,)), role_of(each.name)) for each in file.tensors)
    value = file.metadata.get("general.architecture")
    if value is None:
        raise FormatError(
            f"{path.name}: general.architecture is missing", "the file does not contain a model; give one that does"
        )
    architecture = str(value.content)
    layers, heads, kv_heads, experts = _hyperparameters(path, file.metadata, architecture)
    return GgufForm(
        path=path,
        architecture=architecture,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        experts=experts,
        tensors=tuple(FormTensor(target, BlockType[target.rows.dtype]) for target in targets),
        metadata=file.metadata,
        alignment=file.alignment,
        files=tuple({path.absolute(): None, **{tensor.file.path: None for tensor in file.tensors}}),
    )


def _hyperparameters(path: Path, metadata: Metadata, architecture: str) -> Iterable[int]:
    """Layers, heads, key-value heads and experts of a file that may be an incomplete model."""
    found: dict[str, int] = {}
    for known in (LAYERS, HEADS, KV_HEADS, EXPERTS):
        key = full_key(known.gguf[0], architecture)
        value = metadata.get(key)
        content = value.content if value else known.default(found) if known.default else None
        if isinstance(content, list):  # one per layer
            content = content[0] if content else None
        if not isinstance(content, int):
            raise FormatError(f"{path.name}: {key} is missing", "the file is damaged; convert it again")
        found[known.name] = content
    return found.values()
