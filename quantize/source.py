"""What is to be quantized: a Hugging Face folder, a Megatron checkpoint or a GGUF file, seen as the unquantized
GGUF file that it is or would be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convert.checkpoint import Checkpoint
from convert.errors import FormatError, MappingError, UsageError
from convert.families.table import Target
from convert.layouts.gguf import model_metadata, model_targets, stays_float32
from convert.layouts.gguf_file import DEFAULT_ALIGNMENT, read_gguf
from convert.layouts.hf import open_hf
from convert.layouts.megatron import is_megatron, open_megatron
from convert.metadata import Metadata
from convert.rearrange import Rows
from convert.types import BlockType
from quantize.assign import SourceTensor
from quantize.mixture import ModelFacts

# The rules of the mixtures are known for these alone.
_ARCHITECTURES = ("llama", "mistral3")
_FLOAT_SUFFIX = re.compile(r"[-._](bf16|f16|f32|fp16|fp32)$", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A model before quantization.

    Attributes:
        stem: what the names of the quantized files begin with.
        targets: tensors by GGUF name, with where their rows come from.
        metadata: key-value pairs of the unquantized file; the file type is set by each plan.
        model: what the mixtures look at.
        alignment: of the file.
        notes: what a user should know.
    """

    stem: str
    targets: Mapping[str, Target]
    metadata: Metadata
    model: ModelFacts
    alignment: int
    notes: tuple[str, ...] = ()

    def tensors(self) -> list[SourceTensor]:
        """Every tensor with the type that the unquantized file has it in."""
        return [SourceTensor(target.name, target.shape, _stored_type(target)) for target in self.targets.values()]


def open_source(path: Path, hf_config: Path | None = None) -> Source:
    """Open a Hugging Face folder, a Megatron-Core checkpoint or a GGUF file; no weight is read.

    Args:
        hf_config: see `open_megatron`; nothing else has use for it.

    Raises:
        SourceError, FormatError, MappingError: see `open_hf`, `open_megatron` and `read_gguf`.
        UsageError: `hf_config` for another kind of source.
    """
    if is_megatron(path):
        return _open_checkpoint(path, open_megatron(path, hf_config))
    if hf_config is not None:
        raise UsageError(f"{path} is no Megatron checkpoint", "leave --hf-config out")
    if path.is_file() or path.suffix == ".gguf":
        return _open_gguf(path)
    return _open_checkpoint(path, open_hf(path))


def _open_checkpoint(path: Path, checkpoint: Checkpoint) -> Source:
    targets = {target.name: target for target in model_targets(checkpoint)}
    metadata = model_metadata(checkpoint, file_type=0)
    notes = (*checkpoint.notes, *checkpoint.vocabulary().notes)
    return Source(path.resolve().name, targets, metadata, _facts(path, metadata), DEFAULT_ALIGNMENT, notes)


def _open_gguf(path: Path) -> Source:
    file = read_gguf(path)
    if "split.count" in file.metadata and file.metadata["split.count"].content > 1:
        raise FormatError(
            f"{path.name} is one part of a split model", "merge the parts first with llama-gguf-split --merge"
        )
    # Where a shard ended has no meaning in the quantized file.
    metadata = {key: value for key, value in file.metadata.items() if not key.startswith("split.")}
    targets = {tensor.name: Target(tensor.name, tensor.shape, Rows((tensor,))) for tensor in file.tensors}
    return Source(_FLOAT_SUFFIX.sub("", path.stem), targets, metadata, _facts(path, metadata), file.alignment)


def _stored_type(target: Target) -> BlockType:
    own = BlockType[target.rows.dtype]
    return BlockType.F32 if not own.is_quantized and stays_float32(target) else own


def _facts(path: Path, metadata: Metadata) -> ModelFacts:
    value = metadata.get("general.architecture")
    architecture = value.content if value else None
    if architecture not in _ARCHITECTURES:
        raise MappingError(
            f"{path.name}: architecture {architecture!r} is not supported",
            f"supported GGUF architectures: {', '.join(_ARCHITECTURES)}",
        )

    def count(key: str, default: int | None = None) -> int:
        value = metadata.get(f"{architecture}.{key}")
        content = value.content if value else default
        if isinstance(content, list):  # one for each layer
            content = content[0] if content else None
        if not isinstance(content, int):
            raise FormatError(f"{path.name}: {architecture}.{key} is missing", "the file is damaged; convert it again")
        return content

    heads = count("attention.head_count")
    return ModelFacts(
        architecture=architecture,
        layers=count("block_count"),
        heads=heads,
        kv_heads=count("attention.head_count_kv", heads),
        experts=count("expert_count", 0),
    )
