"""An opened checkpoint: its spec, its tensors by canonical name, its vocabulary. No weights have been read yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.model.metadata import Metadata
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.nodes import Tensor

if TYPE_CHECKING:
    from mconv.convert.tokenizer import Vocabulary


@dataclass(frozen=True)
class Checkpoint:
    """A model of a supported family, from any layout.

    Attributes:
        layout: the name of its layout.
        path: the folder or file that it was opened from; for messages only, never written into an artifact.
        spec: hyperparameters.
        tensors: canonical (Hugging Face) name to tensor, without those that the family drops.
        vocabulary: reads the tokenizer, which takes longer than opening the rest of the checkpoint.
        files: the files that it is read from, which must not be overwritten.
        companions: reads the files beside the weights, by file name: configuration, generation settings, tokenizer,
            chat templates. Empty if the layout has no such files.
        float32_by_layout: the layout stores vectors and routers as F32, independently of the model's type, like GGUF.
        provenance: its known `general.*` and `mconv.*` metadata.
        notes: information for the user, such as what was left out.
    """

    layout: str
    path: Path
    spec: ModelSpec
    tensors: Mapping[str, Tensor]
    vocabulary: Callable[[], Vocabulary]
    files: tuple[Path, ...]
    sidecars: Callable[[], Mapping[str, bytes]] = dict
    float32_by_layout: bool = False
    provenance: Metadata = field(default_factory=dict)
    notes: tuple[str, ...] = ()
