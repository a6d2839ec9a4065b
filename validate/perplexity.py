"""Perplexity of a text under a model, as llama-perplexity defines it."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from validate.chunks import scored_logits
from validate.runtime import Runtime

if TYPE_CHECKING:
    import numpy as np

CACHED_LOGITS = 1 << 16  # logits that one pass works on: 256 kB, which stays in a core's own cache


@dataclass(frozen=True)
class Perplexity:
    """Sums over scored tokens, from which the perplexity and its error follow.

    Attributes:
        tokens: scored tokens.
        total: sum of their negative log-likelihoods, in nats.
        squares: sum of the squares of those.
    """

    tokens: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, losses: np.ndarray) -> Perplexity:
        """These sums with more losses in them, float64[tokens]."""
        return Perplexity(
            self.tokens + len(losses), self.total + float(losses.sum()), self.squares + float((losses * losses).sum())
        )

    @property
    def value(self) -> float:
        """exp of the mean negative log-likelihood."""
        return _exp(self.total / self.tokens)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, carried through exp: llama.cpp tools/perplexity/perplexity.cpp."""
        if self.tokens < 2:
            return math.nan
        mean = self.total / self.tokens
        variance = max(0.0, self.squares / self.tokens - mean * mean)
        return self.value * math.sqrt(variance / (self.tokens - 1))


def perplexity(runtime: Runtime, chunks: np.ndarray, progress: Callable[[int, Perplexity], None]) -> Perplexity:
    """Score the second half of every chunk.

    Args:
        runtime: the model.
        chunks: int32[chunks, length] from `validate.chunks.chunk`.
        progress: told after every block how many tokens it had, and the sums so far.

    Raises:
        SourceError: llama.cpp cannot run the model.
    """
    result = Perplexity()
    with ThreadPoolExecutor(runtime.threads) as pool:
        for block in scored_logits(runtime, chunks):
            losses = negative_log_likelihoods(block.logits, block.targets, pool)
            result = result.add(losses)
            progress(len(losses), result)
    return result


def negative_log_likelihoods(logits: np.ndarray, targets: np.ndarray, pool: ThreadPoolExecutor) -> np.ndarray:
    """-log softmax(logits)[target] of every row, in nats.

    exp is taken in float32 and summed in float64, like llama-perplexity: its error is some 1e-7 of the sum.

    Args:
        logits: float32[rows, vocabulary].
        targets: int32[rows].
        pool: threads that share the rows.

    Returns:
        float64[rows].
    """
    import numpy as np

    rows, vocab = logits.shape
    step = max(1, CACHED_LOGITS // vocab)

    def part(start: int) -> np.ndarray:
        block = logits[start : start + step]
        chosen = block[np.arange(len(block)), targets[start : start + step]]
        top = block.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # logits that are not finite show in the result
            shifted = block - top
            np.exp(shifted, out=shifted)
            return np.log(shifted.sum(axis=1, dtype=np.float64)) + (top[:, 0].astype(np.float64) - chosen)

    return np.concatenate(list(pool.map(part, range(0, rows, step))))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
