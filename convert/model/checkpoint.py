"""A checkpoint opened: its spec, its tensors by canonical name, its vocabulary. No weight has been read yet."""

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
    """A model of a supported family, from whatever layout.

    Attributes:
        layout: name of the layout it lies in.
        path: the folder or file it was opened from; for messages, never written into an artifact.
        spec: hyperparameters.
        tensors: canonical (Hugging Face) name to tensor; what the family drops is gone.
        vocabulary: reads the tokenizer, which takes longer than all the rest of opening.
        files: what it is read from, and so must not be written.
        companions: reads what lies beside the weights, by file name: configuration, generation settings, tokenizer,
            chat templates. Empty where the layout has no such files.
        float32_by_layout: the layout has vectors and routers in F32 whatever the model's own type, as GGUF does.
        provenance: `general.*` and `mconv.*` metadata that is known of it.
        notes: what a user should know, such as what was left out.
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
