"""Perplexity of a text under a model, as llama-perplexity defines it."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.inference.language_model import LanguageModel
from mconv.inference.schedule import Schedule
from mconv.validate.divergence.softmax import CACHED_LOGITS, softmax
from mconv.validate.divergence.statistics import mean_and_error
from mconv.validate.findings import Finding

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Perplexity:
    """Sums over scored tokens, from which perplexity and standard error are computed.

    Attributes:
        tokens: scored tokens.
        total: sum of their negative log-likelihoods, in nats.
        squares: sum of their squares.
    """

    tokens: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, losses: np.ndarray) -> Perplexity:
        """These sums with more losses, float64[tokens], added."""
        return Perplexity(
            self.tokens + len(losses), self.total + float(losses.sum()), self.squares + float((losses * losses).sum())
        )

    @property
    def value(self) -> float:
        """exp of the mean negative log-likelihood."""
        return exp(self.log_mean[0])

    @property
    def standard_error(self) -> float:
        """Standard error of the perplexity, as in llama.cpp tools/perplexity/perplexity.cpp."""
        return self.value * self.log_mean[1]

    @property
    def log_mean(self) -> tuple[float, float]:
        """Mean negative log-likelihood in nats, which is the logarithm of the perplexity, and its standard error."""
        return mean_and_error(self.total, self.squares, self.tokens)


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity of one text under one model.

    Attributes:
        file, text: paths as given.
        chunks: chunks run.
        seconds: wall time.
    """

    file: Path
    text: Path
    perplexity: Perplexity
    chunks: int
    seconds: float

    @property
    def findings(self) -> list[Finding]:
        """One finding if the perplexity is not finite."""
        if math.isfinite(self.perplexity.value):
            return []
        what = f"the perplexity is not finite on {self.text}"
        return [Finding("perplexity", "not_finite_perplexity", str(self.text), what)]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        return {
            "file": str(self.file),
            "text": str(self.text),
            "perplexity": self.perplexity.value,
            "standard_error": self.perplexity.standard_error,
            "tokens": self.perplexity.tokens,
            "chunks": self.chunks,
            "seconds": round(self.seconds, 3),
            "findings": [finding.to_json() for finding in self.findings],
        }


def perplexity(model: LanguageModel, chunks: np.ndarray, progress: Callable[[int, Perplexity], None]) -> Perplexity:
    """Score the second half of every chunk.

    Args:
        model: the model to run.
        chunks: int32[chunks, length] from `mconv.inference.chunks.with_bos`.
        progress: called after every block with its number of tokens and the sums so far.

    Raises:
        SourceError: the model cannot be run.
    """
    result = Perplexity()
    schedule = Schedule.of(chunks.shape, model.vocab_size)
    # Always close it here: the context of the model must be freed before the model.
    with ThreadPoolExecutor(model.threads) as pool, closing(model.scored_logits(chunks, schedule)) as blocks:
        for block in blocks:
            losses = negative_log_likelihoods(block.logits, block.targets, pool)
            result = result.add(losses)
            progress(len(losses), result)
    return result


def negative_log_likelihoods(logits: np.ndarray, targets: np.ndarray, pool: ThreadPoolExecutor) -> np.ndarray:
    """-log softmax(logits)[target] of every row, in nats.

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
        with np.errstate(invalid="ignore"):  # logits that are not finite show in the result
            return softmax(block).log_total - block[np.arange(len(block)), targets[start : start + step]]

    return np.concatenate(list(pool.map(part, range(0, rows, step))))


def exp(value: float) -> float:
    """e to the power of a value; infinity if it is too large for a float."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
