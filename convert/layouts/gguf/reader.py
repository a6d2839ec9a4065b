"""Read the GGUF layout: map tensors back to their canonical names and order."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from mconv.convert.containers.gguf import GgufFile
from mconv.convert.containers.gguf_split import read_gguf_model
from mconv.convert.errors import FormatError
from mconv.convert.families import family_named
from mconv.convert.layouts.gguf.mapping import canonical_tensors
from mconv.convert.layouts.gguf.spec import spec_of, weights_of
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.model.metadata import Metadata
from mconv.convert.tokenizer import Vocabulary

_TOKENIZER_JSON = "tokenizer.huggingface.json"
# Keys that describe the file, not the model.
_OF_THE_FILE = frozenset(
    {"general.architecture", "general.file_type", "general.quantization_version", "general.alignment"}
)


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file, or the first part of a split one. Only headers are read.

    Quantized tensors are not decoded; the caller decodes the rows that it reads.

    Raises:
        SourceError: a file is missing or truncated.
        FormatError: a file breaks the rules of its format, or a key is missing.
        MappingError: the architecture is not supported, or a tensor has no place in its family.
    """
    return gguf_checkpoint(path, read_gguf_model(path))


def gguf_checkpoint(path: Path, file: GgufFile) -> Checkpoint:
    """The checkpoint in a file whose header has been read; see `open_gguf`."""
    spec = spec_of(path.name, file)
    tensors = canonical_tensors(family_named(spec.family), spec, weights_of(file))

    @cache
    def vocabulary() -> Vocabulary:
        from mconv.convert.tokenizer.from_gguf import vocabulary_of_metadata

        return vocabulary_of_metadata(path.name, file.metadata, spec.vocab)

    return Checkpoint(
        layout="gguf",
        path=path,
        spec=spec,
        tensors=tensors,
        vocabulary=vocabulary,
        files=tuple({path.absolute(): None, **{tensor.file.path: None for tensor in file.tensors}}),
        sidecars=lambda: _carried_tokenizer(path.name, file.metadata),
        float32_by_layout=True,
        provenance={
            key: value
            for key, value in file.metadata.items()
            if key.startswith(("general.", "mconv.")) and key not in _OF_THE_FILE
        },
    )


def _carried_tokenizer(name: str, metadata: Metadata) -> dict[str, bytes]:
    """The complete tokenizer.json that some writers store in the file (ggml docs/gguf.md, tokenizer.huggingface.json).

    Raises:
        FormatError: it is not a JSON object.
    """
    value = metadata.get(_TOKENIZER_JSON)
    if value is None:
        return {}
    try:
        whole = isinstance(json.loads(value.content), dict)
    except (ValueError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise FormatError(f"{name}: {_TOKENIZER_JSON} is not a JSON object", "the file is damaged; download it again")
    return {"tokenizer.json": value.content.encode()}
