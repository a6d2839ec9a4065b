"""Tokens that a Hugging Face checkpoint adds to those of its tokenizer model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.documents import member, read_object_if_any
from mconv.convert.errors import FormatError
from mconv.convert.tokenizer.vocabulary import TokenType, check_token_id

_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class AddedToken:
    """A token in addition to the model's own.

    Attributes:
        text: as it appears in a text, with spaces instead of SentencePiece's mark for them.
    """

    id: int
    text: str
    type: TokenType


def added_token(source: str, token_id: object, entry: object, vocab_size: int) -> AddedToken:
    """One entry of `added_tokens` (tokenizer.json) or `added_tokens_decoder` (tokenizer_config.json).

    Raises:
        FormatError: it has no text, or an id outside the embedding matrix.
    """
    text = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(text, str) or not text:
        raise FormatError(f"{source}: added token {token_id!r} has no text", "add its 'content', or remove the token")
    checked = check_token_id(source, text, token_id, vocab_size)
    if entry.get("special") or looks_special(text):
        return AddedToken(checked, text, TokenType.CONTROL)
    return AddedToken(checked, text.replace("\u2581", " "), TokenType.USER_DEFINED)


def read_added_tokens(folder: Path, vocab_size: int) -> list[AddedToken]:
    """The `added_tokens_decoder` of tokenizer_config.json, in its order; empty if there is none.

    Raises:
        FormatError: an entry without a text, or with an id outside the embedding matrix.
    """
    config = read_object_if_any(folder / _CONFIG)
    return [
        added_token(_CONFIG, _number(token_id), entry, vocab_size)
        for token_id, entry in member(_CONFIG, config, "added_tokens_decoder", dict).items()
    ]


def named_special_tokens(config: dict[str, Any]) -> list[str]:
    """The texts that tokenizer_config.json names as special; these are control tokens."""
    entries = [config.get(f"{role}_token") for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = config.get(key)
        entries += extra if isinstance(extra, list) else list(extra.values()) if isinstance(extra, dict) else []
    texts = [entry.get("content") if isinstance(entry, dict) else entry for entry in entries]
    return list(dict.fromkeys(text for text in texts if isinstance(text, str) and text))


def looks_special(text: str) -> bool:
    """Whether a token that is not marked special is a control token nevertheless: `<|im_end|>`.

    The cases of llama.cpp's converter (conversion/base.py, `does_token_look_special`) that occur in this model family.
    """
    return (
        text in ("<pad>", "<mask>")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _number(key: str) -> object:
    """The id in a JSON key; if the key is not a number, the key itself, which is refused later."""
    return int(key) if key.isascii() and key.isdecimal() else key
