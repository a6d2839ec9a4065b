"""Cut a text into chunks of tokens.

The chunks are the same as in llama-perplexity (llama.cpp tools/perplexity/perplexity.cpp): consecutive, without
overlap, with BOS in place of the first token of each if the vocabulary adds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.documents import read_whole
from mconv.convert.errors import SourceError

if TYPE_CHECKING:
    import numpy as np

    from mconv.inference.llama_vocabulary import LlamaVocabulary


def read_text(path: Path) -> str:
    """Read a text file as llama-perplexity does: all of it, without one final newline.

    Raises:
        SourceError: it is not UTF-8, or not a regular file.
        OSError: it cannot be read.
    """
    data = read_whole(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: byte {error.start} is not UTF-8", "convert the text to UTF-8") from error
    return text.removesuffix("\n")


def cut(tokens: np.ndarray, length: int, limit: int | None = None, *, text: Path | None = None) -> np.ndarray:
    """Cut the tokens of a text into chunks, int32[chunks, length]; an incomplete last chunk is left out.

    Args:
        tokens: int32[tokens].
        length: tokens per chunk.
        limit: maximum number of chunks.
        text: the file of the text, for the error.

    Raises:
        SourceError: the text has fewer than two chunks, which llama-perplexity also rejects.
    """
    if len(tokens) < 2 * length:
        raise SourceError(
            f"{text or 'the text'} is too short: {len(tokens)} tokens, but a context of {length} needs {2 * length}",
            "use a longer text or a smaller --ctx",
        )
    return tokens[: len(tokens) // length * length].reshape(-1, length)[:limit]


def with_bos(vocabulary: LlamaVocabulary, chunks: np.ndarray) -> np.ndarray:
    """The chunks as a model reads them: BOS in place of the first token of each, if its vocabulary adds it."""
    chunks = chunks.copy()
    if vocabulary.adds_bos:
        chunks[:, 0] = vocabulary.bos
    return chunks
