"""Steps in which models run chunks of a text: the logits that count, in blocks of bounded size.

As in llama-perplexity (llama.cpp tools/perplexity/perplexity.cpp) only the second half of a chunk is scored, so that
every scored token has at least half a context before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MAX_BATCH = 512  # tokens that llama.cpp takes through the layers at once (its own default, n_ubatch)
LOGITS_BYTES = 128 << 20  # the most that the logits of one step take
ALL_LOGITS_BYTES = 3 * LOGITS_BYTES  # the most that those of all models take that run side by side
PARALLEL_TOKENS = 2048  # tokens of the chunks that run side by side: llama-perplexity's n_batch
MAX_PARALLEL = 16  # chunks side by side; each takes the keys and values of at least 256 tokens, however short it is
MANY_TOKENS = 64  # of one chunk in a step: with fewer, llama.cpp takes an attention that sums in f16


@dataclass(frozen=True)
class LogitBlock:
    """Consecutive scored positions of one chunk: what the model expects there, and what the text has.

    Attributes:
        chunk: number of the chunk.
        position: place of the first of them in the chunk.
        logits: float32[rows, vocabulary]; valid until the next block is asked for.
        targets: int32[rows], the token that follows each position.
    """

    chunk: int
    position: int
    logits: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Step:
    """The same stretch of some chunks, which a model reads at once.

    Attributes:
        group: the chunks.
        start, stop: the positions read in each; the first step of a group starts at 0, the next where the last stopped.
        rows: how many of the last of these positions are scored, or end the chunk.
    """

    group: slice
    start: int
    stop: int
    rows: int

    @property
    def first(self) -> int:
        """The first of the scored positions."""
        return self.stop - self.rows

    def targets(self, chunk: np.ndarray) -> np.ndarray:
        """The tokens that the scored positions of a chunk are scored against; the chunk's last position has none."""
        return chunk[self.first + 1 : self.stop + 1]

    def blocks(self, chunks: np.ndarray, logits: np.ndarray) -> Iterator[LogitBlock]:
        """The logits of the step beside the tokens that they are scored against.

        Args:
            chunks: int32[chunks, length], all of them.
            logits: float32[chunks of the group, rows, vocabulary].
        """
        for number, part in enumerate(logits, self.group.start):
            targets = self.targets(chunks[number])
            if len(targets):
                yield LogitBlock(number, self.first, part[: len(targets)], targets)


@dataclass(frozen=True)
class Schedule:
    """Who reads what when. Models that follow one schedule yield blocks that correspond.

    As many chunks run side by side as in llama-perplexity, and in steps of as many tokens unless the vocabulary is too
    large for that, or the models too many. This matters to the last digits: llama.cpp's kernels round differently for
    few tokens than for many, so the same steps give the same logits to the bit.

    Attributes:
        chunks, length: how many chunks, and tokens in each.
        parallel: chunks side by side.
        rows: the most logit rows of one step.
    """

    chunks: int
    length: int
    parallel: int
    rows: int

    @classmethod
    def of(cls, shape: tuple[int, ...], vocab_size: int, models: int = 1) -> Schedule:
        """The schedule for chunks of this shape, so that the logits of a step take bounded memory.

        Args:
            shape: number and length of the chunks.
            vocab_size: logits in a row; the largest of the models'.
            models: how many hold their logits at the same time.
        """
        count, length = shape
        rows = max(1, min(MAX_BATCH, min(LOGITS_BYTES, ALL_LOGITS_BYTES // models) // (4 * vocab_size)))
        wanted = max(1, min(count, MAX_PARALLEL, PARALLEL_TOKENS // length))
        parallel = max(1, min(wanted, rows // min(MANY_TOKENS, MAX_BATCH // wanted)))
        return cls(count, length, parallel, rows)

    def steps(self) -> Iterator[Step]:
        """All steps, in order."""
        for begin in range(0, self.chunks, self.parallel):
            group = slice(begin, min(begin + self.parallel, self.chunks))
            width = self.rows // (group.stop - group.start)
            for start in range(0, self.length, width):
                stop = min(start + width, self.length)
                yield Step(group, start, stop, max(0, stop - max(start, first_scored(self.length))))


def first_scored(length: int) -> int:
    """The first position of a chunk whose logits are scored."""
    return length // 2


def scored_per_chunk(length: int) -> int:
    """How many tokens of a chunk are scored: those that follow the positions `length // 2` to `length - 2`."""
    return length - 1 - first_scored(length)
