"""Where the tokenizer of a checkpoint is, whatever its layout: found without its weights, which need not be there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.documents import read_object
from mconv.convert.errors import SourceError, UsageError

if TYPE_CHECKING:
    from mconv.convert.model.metadata import Metadata
    from mconv.convert.tokenizer import Vocabulary

_TEMPLATE_KEY = "tokenizer.chat_template"


@dataclass(frozen=True)
class TokenizerSource:
    """The tokenizer and the chat templates of an artifact or a reference.

    Attributes:
        path: as given.
        folder: with the tokenizer files; None for a GGUF file, which is its own.
        vocabulary: the tokenizer as a value.
        templates: chat templates by name, 'default' being the one to use unasked; as they stand, even where one is no
            template.
    """

    path: Path
    folder: Path | None
    vocabulary: Vocabulary = field(repr=False)
    templates: dict[str, str] = field(repr=False)


def open_sources(paths: Sequence[Path], hf_config: Path | None = None) -> list[TokenizerSource]:
    """Read the tokenizers of GGUF files, Hugging Face folders and Megatron folders.

    Args:
        hf_config: for those of Megatron, see `mconv.convert.layouts.megatron.reader.open_megatron`.

    Raises:
        SourceError, FormatError, MappingError: files are missing, damaged or of an unknown kind.
        UsageError: `hf_config` for other layouts only.
    """
    from mconv.convert.layouts.megatron.reader import is_megatron

    if hf_config is not None and not any(path.is_dir() and is_megatron(path) for path in paths):
        raise UsageError(f"{paths[-1]} is no Megatron checkpoint", "leave --hf-config out")
    return [_open(path, hf_config) for path in paths]


def _open(path: Path, hf_config: Path | None) -> TokenizerSource:
    from mconv.convert.layouts.megatron.reader import is_megatron, open_megatron, tokenizer_folder

    if not path.exists():
        raise SourceError(f"{path}: no such file or folder", "give a folder of a checkpoint, or a GGUF file")
    if path.is_dir() and is_megatron(path):
        vocabulary = open_megatron(path, hf_config).vocabulary()
        return _of_folder(path, tokenizer_folder(path, hf_config) or path, vocabulary)
    if path.is_dir():
        from mconv.convert.tokenizer import read_vocabulary

        return _of_folder(path, path, read_vocabulary(path, _vocab_size(path)))
    return _of_gguf(path)


def _of_folder(path: Path, folder: Path, vocabulary: Vocabulary) -> TokenizerSource:
    from mconv.convert.tokenizer.template import read_chat_templates

    # Not those of the vocabulary: where a checkpoint has none, that one is generated.
    return TokenizerSource(path, folder, vocabulary, read_chat_templates(folder))


def _vocab_size(folder: Path) -> int:
    from mconv.convert.families import family_of_class
    from mconv.convert.layouts.hf.reader import architecture

    config = read_object(folder / "config.json")
    return family_of_class(architecture(config)).read_config(config).vocab


def _of_gguf(path: Path) -> TokenizerSource:
    from mconv.convert.containers.gguf_split import read_gguf_model
    from mconv.convert.layouts.gguf.names import role_of
    from mconv.convert.model.roles import Role
    from mconv.convert.tokenizer.from_gguf import vocabulary_of_metadata

    file = read_gguf_model(path)
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    rows = next((tensor.shape[0] for tensor in file.tensors if role_of(tensor.name) is Role.TOKEN_EMBEDDING), None)
    # A file with a vocabulary and no weights is as good here.
    count = len(tokens.content) if tokens is not None and isinstance(tokens.content, list) else 0
    vocabulary = vocabulary_of_metadata(path.name, file.metadata, count if rows is None else rows)
    return TokenizerSource(path, None, vocabulary, _templates(file.metadata))


def _templates(metadata: Metadata) -> dict[str, str]:
    return {
        key[len(_TEMPLATE_KEY) + 1 :] or "default": value.content
        for key, value in metadata.items()
        if (key == _TEMPLATE_KEY or key.startswith(f"{_TEMPLATE_KEY}.")) and isinstance(value.content, str)
    }
