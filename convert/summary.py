"""A summary of a checkpoint, in terms that do not depend on its layout."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from mconv.convert.layouts.gguf.architecture import ARCHITECTURES
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.model.provenance import size_label
from mconv.convert.tensors.nodes import stored_bytes
from mconv.convert.tokenizer import TokenType, Vocabulary

_NOT_SHOWN = frozenset({"family", "rope"})


@dataclass(frozen=True)
class Summary:
    """A summary of a checkpoint.

    Attributes:
        layout, family: their names.
        gguf_architecture: the architecture name in GGUF; None if GGUF has no such architecture.
        name: the name of the model, if known.
        size_label: the parameter count in short form: 24B, 8x7B.
        parameters, bytes, tensors: how many; experts that a layout stacks are counted one by one, so that the number of
            tensors of a model is the same in every layout.
        types: number of tensors by type, most frequent first.
        shape, rope: hyperparameters by their names in `ModelSpec` and `Rope`.
        vocabulary: source, model, tokens by type, special tokens.
    """

    layout: str
    family: str
    gguf_architecture: str | None
    name: str | None
    size_label: str
    parameters: int
    bytes: int
    tensors: int
    types: dict[str, int]
    shape: dict[str, Any]
    rope: dict[str, Any]
    vocabulary: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members, in the order of the attributes."""
        return asdict(self)


def summarize(checkpoint: Checkpoint) -> Summary:
    """Summarize a checkpoint without reading any weights.

    Raises:
        SourceError, FormatError: the vocabulary cannot be read.
    """
    spec, tensors = checkpoint.spec, checkpoint.tensors
    shape = {key: value for key, value in asdict(spec).items() if key not in _NOT_SHOWN}
    name = checkpoint.provenance.get("general.name")
    types = Counter(tensor.dtype for tensor in tensors.values())
    return Summary(
        layout=checkpoint.layout,
        family=spec.family,
        gguf_architecture=ARCHITECTURES.get(spec.family),
        name=str(name.content) if name else None,
        size_label=size_label(tensors.values(), spec),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        bytes=sum(map(stored_bytes, tensors.values())),
        tensors=len(tensors),
        types=dict(sorted(types.items(), key=lambda item: (-item[1], item[0]))),
        shape=shape,
        rope={key: value for key, value in asdict(spec.rope).items() if value is not None},
        vocabulary=_vocabulary(checkpoint.vocabulary()),
    )


def _vocabulary(vocabulary: Vocabulary) -> dict[str, Any]:
    types = Counter(vocabulary.types)
    return {
        "source": vocabulary.source,
        "model": vocabulary.model,
        "pre": vocabulary.pre,
        "tokens": len(vocabulary.tokens),
        "types": {kind.name.lower(): types[kind] for kind in TokenType if kind in types},
        "special": {
            role: f"{token_id} {vocabulary.tokens[token_id]!r}" for role, token_id in vocabulary.special_ids.items()
        },
        "adds": [role for role, added in vocabulary.add_special.items() if added],
        "chat_templates": list(vocabulary.chat_templates),
    }
