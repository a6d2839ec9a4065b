"""The steps in which models run chunks of a text, and the scored logits in blocks of bounded size.

As in llama-perplexity (llama.cpp tools/perplexity/perplexity.cpp), only the second half of a chunk is scored, so that
every scored token has at least half a context before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MAX_BATCH = 512  # tokens that llama.cpp runs through the layers at once (its default of n_ubatch)
LOGITS_BYTES = 128 << 20  # maximum size of the logits of one step
ALL_LOGITS_BYTES = 3 * LOGITS_BYTES  # maximum size of the logits of all models that run in parallel
PARALLEL_TOKENS = 2048  # tokens of the chunks that run in parallel: llama-perplexity's n_batch
MAX_PARALLEL = 16  # chunks in parallel; each takes the keys and values of at least 256 tokens, even if it is shorter
MANY_TOKENS = 64  # tokens of one chunk in a step: with fewer, llama.cpp uses an attention kernel that sums in f16


@dataclass(frozen=True)
class LogitBlock:
    """Consecutive scored positions of one chunk: the logits of the model, and the tokens of the text.

    Attributes:
        chunk: index of the chunk.
        position: the first position, within the chunk.
        logits: float32[rows, vocabulary]; valid until the next block is requested.
        targets: int32[rows], the token that follows each position.
    """

    chunk: int
    position: int
    logits: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Step:
    """The same range of positions in several chunks, which a model reads at once.

    Attributes:
        group: the chunks.
        start, stop: the positions read in each; the first step of a group starts at 0, the next at the last `stop`.
        rows: how many of the last positions are scored; the last position of the chunk is included, but not scored.
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
        """The target tokens of the scored positions of a chunk; its last position has none."""
        return chunk[self.first + 1 : self.stop + 1]

    def blocks(self, chunks: np.ndarray, logits: np.ndarray) -> Iterator[LogitBlock]:
        """The logits of the step with their target tokens.

        Args:
            chunks: int32[chunks, length], all chunks.
            logits: float32[chunks of the group, rows, vocabulary].
        """
        for number, part in enumerate(logits, self.group.start):
            targets = self.targets(chunks[number])
            if len(targets):
                yield LogitBlock(number, self.first, part[: len(targets)], targets)


@dataclass(frozen=True)
class Schedule:
    """The order in which models read chunks. Models that follow the same schedule yield corresponding blocks.

    As many chunks run in parallel as in llama-perplexity, in steps of as many tokens, unless the vocabulary is too
    large or there are too many models. This affects the last digits: llama.cpp's kernels round differently for few
    tokens than for many, so only the same steps give exactly the same logits.

    Attributes:
        chunks, length: number of chunks, and tokens in each.
        parallel: number of chunks in parallel.
        rows: maximum number of logit rows of one step.
    """

    chunks: int
    length: int
    parallel: int
    rows: int

    @classmethod
    def of(cls, shape: tuple[int, ...], vocab_size: int, models: int = 1) -> Schedule:
        """The schedule for chunks of this shape, with bounded memory for the logits of a step.

        Args:
            shape: number and length of the chunks.
            vocab_size: number of logits per row; the largest of all models.
            models: how many models hold their logits at the same time.
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
