"""A text in chunks through a model: the logits of the positions that count, in blocks of bounded size.

The chunks are those of llama-perplexity (llama.cpp tools/perplexity/perplexity.cpp): consecutive, without overlap, BOS
in place of the first token of each where the vocabulary adds it, and only the second half scored, so that every scored
token has at least half a context before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convert.errors import SourceError
from validate.runtime import MAX_BATCH, Runtime

if TYPE_CHECKING:
    import numpy as np

LOGITS_BYTES = 128 << 20  # the most that one block of logits takes
PARALLEL_TOKENS = 2048  # tokens of the chunks that run side by side: llama-perplexity's n_batch
MAX_PARALLEL = 16  # chunks side by side; each takes the keys and values of at least 256 tokens, however short it is


@dataclass(frozen=True)
class LogitBlock:
    """Consecutive scored positions of one chunk: what the model expects there, and what the text has.

    Attributes:
        logits: float32[rows, vocabulary]; valid until the next block is asked for.
        targets: int32[rows], the token that follows each position.
    """

    logits: np.ndarray
    targets: np.ndarray


def read_text(path: Path) -> str:
    """Read a text file as llama-perplexity does: all of it, less one final newline.

    Raises:
        SourceError: it is not UTF-8.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 at byte {error.start}", "convert the text to UTF-8") from error
    return text.removesuffix("\n")


def chunk(runtime: Runtime, text: str, length: int, limit: int | None = None) -> np.ndarray:
    """Cut a text into chunks, int32[chunks, length].

    Args:
        runtime: whose vocabulary to use.
        text: the whole text.
        length: tokens in a chunk.
        limit: the most chunks to keep.

    Raises:
        SourceError: the text has fewer than two chunks, which llama-perplexity refuses too.
    """
    tokens = runtime.tokenize(text)
    if len(tokens) < 2 * length:
        raise SourceError(
            f"the text is too short: {len(tokens)} tokens, where a context of {length} needs {2 * length}",
            "use a longer text or a smaller --ctx",
        )
    chunks = tokens[: len(tokens) // length * length].reshape(-1, length)[:limit]
    if runtime.adds_bos:
        chunks[:, 0] = runtime.bos
    return chunks


def scored_per_chunk(length: int) -> int:
    """How many tokens of a chunk are scored: those that follow the positions `length // 2` to `length - 2`."""
    return length - 1 - length // 2


def scored_logits(runtime: Runtime, chunks: np.ndarray) -> Iterator[LogitBlock]:
    """Run every chunk and yield the logits of its scored positions, some rows at a time.

    What is in memory at once stays under `LOGITS_BYTES`. The blocks depend on the vocabulary's size and the shape of
    the chunks alone: two models with one vocabulary yield blocks that correspond.

    As many chunks run side by side as in llama-perplexity, and in steps of as many tokens unless the vocabulary is too
    large for that. This matters to the last digits: llama.cpp's kernels round differently for few tokens than for
    many, so the same steps give the same logits to the bit.
    """
    count, length = chunks.shape
    first = length // 2
    most_rows = max(1, min(MAX_BATCH, LOGITS_BYTES // (4 * runtime.vocab_size)))
    parallel = max(1, min(count, MAX_PARALLEL, most_rows, PARALLEL_TOKENS // length))
    with runtime.context(length, sequences=parallel, rows=most_rows) as context:
        for begin in range(0, count, parallel):
            group = chunks[begin : begin + parallel]
            context.clear()
            width = most_rows // len(group)
            for start in range(0, length, width):
                stop = min(start + width, length)
                scored = max(start, first)
                rows = max(0, stop - scored)
                logits = context.decode(group[:, start:stop], start, rows=rows)
                for sequence, part in zip(group, logits, strict=True):
                    # The last position of a chunk has nothing to be scored against.
                    targets = sequence[scored + 1 : stop + 1]
                    if len(targets):
                        yield LogitBlock(part[: len(targets)], targets)
