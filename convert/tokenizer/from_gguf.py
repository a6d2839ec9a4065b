"""The `tokenizer.*` keys of a GGUF file as a vocabulary: the inverse of `Vocabulary.metadata`."""

from __future__ import annotations

from typing import Any

from mconv.convert.errors import FormatError, SourceError
from mconv.convert.model.metadata import Metadata
from mconv.convert.tokenizer.template import plain_name
from mconv.convert.tokenizer.vocabulary import NAMES_OF_SPECIAL_IDS, TokenType, Vocabulary

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"


def vocabulary_of_metadata(source: str, metadata: Metadata, vocab_size: int) -> Vocabulary:
    """The vocabulary in a GGUF header.

    Args:
        source: name of the file.
        metadata: its keys.
        vocab_size: rows of the embedding matrix.

    Raises:
        SourceError: the file has no tokenizer, or one of a kind that this model family does not have.
        FormatError: a key of the wrong type, lists of different lengths, or an id outside the vocabulary.
    """

    def read(key: str, kind: type, default: Any = None) -> Any:
        value = metadata.get(key)
        if value is None:
            return default
        if not isinstance(value.content, kind):
            raise FormatError(f"{source}: {key} is not a {kind.__name__}", "the file is damaged; download it again")
        return value.content

    model = read(f"{_PREFIX}model", str)
    if model not in ("llama", "gpt2"):
        raise SourceError(
            f"{source}: unknown tokenizer model {model!r}",
            "supported are 'llama' (SentencePiece) and 'gpt2' (byte-level BPE)",
        )
    tokens = _texts(source, "tokens", read(f"{_PREFIX}tokens", list, []))
    types = read(f"{_PREFIX}token_type", list, [TokenType.NORMAL] * len(tokens))
    scores = read(f"{_PREFIX}scores", list, [0.0] * len(tokens))
    if len(tokens) != vocab_size or not len(tokens) == len(types) == len(scores):
        raise FormatError(
            f"{source}: {len(tokens)} tokens, {len(types)} types, {len(scores)} scores and {vocab_size} embeddings",
            "the file is damaged; download it again",
        )
    if not all(isinstance(score, (int, float)) for score in scores):
        raise FormatError(
            f"{source}: {_PREFIX}scores holds values that are not numbers", "the file is damaged; download it again"
        )
    templates, notes = _chat_templates(source, metadata)
    return Vocabulary(
        source=source,
        model=model,
        pre=read(f"{_PREFIX}pre", str, "default"),
        tokens=tokens,
        types=[_type(source, kind) for kind in types],
        scores=[float(score) for score in scores] if model == "llama" else None,
        merges=_texts(source, "merges", read(f"{_PREFIX}merges", list, [])) if model == "gpt2" else None,
        special_ids={
            role: found
            for role, name in NAMES_OF_SPECIAL_IDS.items()
            if (found := read(f"{_PREFIX}{name}_token_id", int)) is not None
        },
        add_special={
            role: found
            for role in ("bos", "eos", "sep")
            if (found := read(f"{_PREFIX}add_{role}_token", bool)) is not None
        },
        add_space_prefix=read(f"{_PREFIX}add_space_prefix", bool),
        chat_templates=templates,
        notes=notes,
    )


def _texts(source: str, what: str, items: list[Any]) -> list[str]:
    for item in items:
        if not isinstance(item, str):
            raise FormatError(
                f"{source}: {item!r} among the {what} is not a string", "the file is damaged; download it again"
            )
    return items


def _type(source: str, number: object) -> TokenType:
    try:
        return TokenType(number)  # type: ignore[arg-type]
    except ValueError as error:
        raise FormatError(
            f"{source}: unknown token type {number!r}", "the file is damaged; download it again"
        ) from error


def _chat_templates(source: str, metadata: Metadata) -> tuple[dict[str, str], tuple[str, ...]]:
    """The templates by name, without those that are only the name of a template built into llama.cpp."""
    templates: dict[str, str] = {}
    notes: list[str] = []
    for key, value in metadata.items():
        if key != _TEMPLATE and not key.startswith(f"{_TEMPLATE}."):
            continue
        if not isinstance(value.content, str):
            raise FormatError(f"{source}: {key} is not a string", "the file is damaged; download it again")
        if "{" in value.content:
            # The name becomes part of a file name.
            templates[plain_name(key[len(_TEMPLATE) + 1 :]) or "default"] = value.content
        else:
            notes.append(f"{key} is {value.content[:40]!r}, which is the name of a template, not a template: left out")
    return templates, tuple(notes)
