"""Rows of logits as exponentials and their totals: what probabilities, likelihoods and divergences are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CACHED_LOGITS = 1 << 16  # logits that one pass works on: 256 kB, which stays in a core's own cache


@dataclass(frozen=True)
class Softmax:
    """Of some rows of logits.

    Attributes:
        exponentials: exp(logits - top), float32[rows, vocabulary].
        total: their sums, float64[rows].
        top: the largest logit, float32[rows].
        best: where it stands; of equals the first.
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
    """Take exp in float32 and sum in float64, like llama-perplexity: the error is some 1e-7 of the sum.

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
    """The same of what is normalized already: what it sums to is one, whatever rounding left of that."""
    import numpy as np

    rows = len(log_probabilities)
    best = log_probabilities.argmax(axis=1)
    return Softmax(np.exp(log_probabilities), np.ones(rows), np.zeros(rows, np.float32), best)
