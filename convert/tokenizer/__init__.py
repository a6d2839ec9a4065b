"""The vocabulary of a checkpoint as a value, read from the tokenizer files that it has.

The order of preference is that of llama.cpp (conversion/llama.py, `set_vocab`), so that both pick the same file:
`tekken.json` if there is no `tokenizer.json` (as in Magistral), then `tokenizer.model` (SentencePiece), then
`tokenizer.json`. A versioned SentencePiece file (`tokenizer.model.v3`) is read if there is nothing else; llama.cpp's
converter does not know it.
"""

from __future__ import annotations

import re
from pathlib import Path

from mconv.convert.errors import SourceError
from mconv.convert.tokenizer.vocabulary import TokenType, Vocabulary

__all__ = ["TokenType", "Vocabulary", "read_vocabulary", "versioned_sentencepiece"]


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Read the vocabulary of the checkpoint in `folder`. No file outside the folder is read.

    Args:
        folder: the checkpoint.
        vocab_size: rows of the embedding matrix. A smaller vocabulary is padded with unused tokens.

    Raises:
        SourceError: no tokenizer file, or one of a kind that GGUF files of this model family cannot hold.
        FormatError: a damaged file, an id outside the embedding matrix, or a token that appears twice.
    """
    # Import each reader only if it is needed: mistral-common alone takes a second.
    if (folder / "tekken.json").is_file() and not (folder / "tokenizer.json").is_file():
        from mconv.convert.tokenizer.tekken import read_tekken

        return read_tekken(folder / "tekken.json", vocab_size)
    if (folder / "tokenizer.model").is_file():
        from mconv.convert.tokenizer.sentencepiece import read_sentencepiece

        return read_sentencepiece(folder / "tokenizer.model", vocab_size)
    if (folder / "tokenizer.json").is_file():
        from mconv.convert.tokenizer.bpe import read_tokenizer_json

        return read_tokenizer_json(folder / "tokenizer.json", vocab_size)
    if (versioned := versioned_sentencepiece(folder)) is not None:
        from mconv.convert.tokenizer.sentencepiece import read_sentencepiece

        return read_sentencepiece(versioned, vocab_size)
    raise SourceError(
        f"{folder.name} has no tokenizer file",
        "put tokenizer.json, tokenizer.model or tekken.json beside the weights",
    )


def versioned_sentencepiece(folder: Path) -> Path | None:
    """The newest `NAME.model.vN`, as Mistral names its SentencePiece files; None if there is none."""
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := re.search(r"\.model\.v(\d+)$", path.name))]
    return max(found)[1] if found else None
