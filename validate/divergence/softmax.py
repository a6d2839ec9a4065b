"""Exponentials of rows of logits and their sums, from which probabilities and divergences are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CACHED_LOGITS = 1 << 16  # logits that one pass works on: 256 kB, which fits into the cache of a core


@dataclass(frozen=True)
class Softmax:
    """The softmax of some rows of logits, not divided by the sums.

    Attributes:
        exponentials: exp(logits - top), float32[rows, vocabulary].
        total: their sums, float64[rows].
        top: the largest logit, float32[rows].
        best: its index; the first one in case of a tie.
    """

    exponentials: np.ndarray
    total: np.ndarray
    top: np.ndarray
    best: np.ndarray

    @property
    def log_total(self) -> np.ndarray:
        """log of the sum of exp(logits), float64[rows]."""
        import numpy as np

        return np.log(self.total) + self.top


def softmax(logits: np.ndarray) -> Softmax:
    """Compute exp in float32 and sum in float64, like llama-perplexity: the error is about 1e-7 of the sum.

    Args:
        logits: float32[rows, vocabulary].
    """
    import numpy as np

    best = logits.argmax(axis=1)
    top = logits[np.arange(len(logits)), best]
    exponentials = logits - top[:, None]
    np.exp(exponentials, out=exponentials)
    return Softmax(exponentials, exponentials.sum(axis=1, dtype=np.float64), top, best)


def softmax_of_normalized(log_probabilities: np.ndarray) -> Softmax:
    """The same for normalized log-probabilities: their sum is taken to be one, ignoring rounding."""
    import numpy as np

    rows = len(log_probabilities)
    best = log_probabilities.argmax(axis=1)
    return Softmax(np.exp(log_probabilities), np.ones(rows), np.zeros(rows, np.float32), best)
