"""Find the tokenizer of a checkpoint in any layout, without its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mconv.convert.containers.gguf import GgufFile
    from mconv.convert.model.metadata import Metadata
    from mconv.convert.tokenizer import Vocabulary
    from mconv.inference.llama_vocabulary import LlamaVocabulary

_TEMPLATE_KEY = "tokenizer.chat_template"


@dataclass(frozen=True)
class TokenizerSource:
    """The tokenizer and the chat templates of an artifact or a reference.

    Attributes:
        path: the path as given.
        folder: the folder with the tokenizer files; None for a GGUF file, which contains its tokenizer.
        vocabulary: the tokenizer as a value.
        templates: chat templates by name, the default one as 'default'; unchecked, so a value may not be a template.
        llama_vocabulary: loads the tokenizer into llama.cpp.
    """

    path: Path
    folder: Path | None
    vocabulary: Vocabulary = field(repr=False)
    templates: dict[str, str] = field(repr=False)
    llama_vocabulary: Callable[[], LlamaVocabulary] = field(repr=False)


def gguf_vocabulary(name: str, file: GgufFile) -> Vocabulary:
    """The tokenizer in a GGUF file, which does not have to contain weights.

    Args:
        name: the name of the file, for messages.

    Raises:
        FormatError: the vocabulary is damaged, or of an unknown kind.
    """
    from mconv.convert.layouts.gguf.names import role_of
    from mconv.convert.model.roles import Role
    from mconv.convert.tokenizer.from_gguf import vocabulary_of_metadata

    tokens = file.metadata.get("tokenizer.ggml.tokens")
    rows = next((tensor.shape[0] for tensor in file.tensors if role_of(tensor.name) is Role.TOKEN_EMBEDDING), None)
    count = len(tokens.content) if tokens is not None and isinstance(tokens.content, list) else 0
    return vocabulary_of_metadata(name, file.metadata, count if rows is None else rows)


def gguf_templates(metadata: Metadata) -> dict[str, str]:
    """The chat templates in a GGUF file, by name."""
    return {
        key[len(_TEMPLATE_KEY) + 1 :] or "default": value.content
        for key, value in metadata.items()
        if (key == _TEMPLATE_KEY or key.startswith(f"{_TEMPLATE_KEY}.")) and isinstance(value.content, str)
    }
