"""Compare the logits of two models for the same tokens, token by token.

Definitions are those of llama-perplexity --kl-divergence (llama.cpp tools/perplexity/perplexity.cpp).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mconv.validate.divergence.softmax import CACHED_LOGITS, softmax, softmax_of_normalized

if TYPE_CHECKING:
    import numpy as np

    from mconv.inference.schedule import LogitBlock

LEAST = -16.0  # log-probability; tokens that are less likely in the reference are ignored


@dataclass(frozen=True)
class TokenScores:
    """Scores of an artifact and the reference for some tokens; all are float64[rows], except the last.

    Attributes:
        kl: sum over the vocabulary of p (log p - log q), in nats; p from the reference, q from the artifact. Tokens to
            which the reference gives less than exp(-16) are left out, as in llama-perplexity, whose file does not
            contain them. Together they hardly matter, unless the models hardly differ.
        losses: -log q of the next token.
        reference_losses: -log p of the next token.
        same_top: bool[rows], whether the most likely tokens are the same; the first one in case of a tie.
    """

    kl: np.ndarray
    losses: np.ndarray
    reference_losses: np.ndarray
    same_top: np.ndarray

    @property
    def delta_p(self) -> np.ndarray:
        """The probability of the next token in the artifact minus that in the reference; float64[rows]."""
        import numpy as np

        return np.exp(-self.losses) - np.exp(-self.reference_losses)


def compare(
    reference: LogitBlock, artifacts: Sequence[np.ndarray], pool: ThreadPoolExecutor, *, stored: bool = False
) -> list[TokenScores]:
    """Compare the logits of some artifacts with those of the reference.

    exp is computed in float32 and everything is summed in float64; the difference of two logits is computed first, so
    that equal logits give exactly zero.

    Args:
        reference: the logits of the reference, and the next tokens.
        artifacts: the logits of each artifact, float32[rows, vocabulary].
        pool: threads that share the rows.
        stored: the reference is log-probabilities from a logits file. They are not normalized again, since the rounding
            of the file would change the total.
    """
    import numpy as np

    rows, vocab = reference.logits.shape
    step = max(1, CACHED_LOGITS // vocab)

    def part(start: int) -> list[TokenScores]:
        rows = slice(start, start + step)
        with np.errstate(invalid="ignore", over="ignore"):  # logits that are not finite show in the result
            return _compare(reference.logits[rows], [each[rows] for each in artifacts], reference.targets[rows], stored)

    parts = list(pool.map(part, range(0, rows, step)))
    return [
        TokenScores(
            np.concatenate([scores.kl for scores in of_one]),
            np.concatenate([scores.losses for scores in of_one]),
            np.concatenate([scores.reference_losses for scores in of_one]),
            np.concatenate([scores.same_top for scores in of_one]),
        )
        for of_one in zip(*parts, strict=True)
    ]


def _compare(
    reference: np.ndarray, artifacts: Sequence[np.ndarray], targets: np.ndarray, stored: bool
) -> list[TokenScores]:
    """`compare` for as many rows as fit into the cache of a core."""
    import numpy as np

    every = np.arange(len(targets))
    p = softmax_of_normalized(reference) if stored else softmax(reference)
    # Weights of the tokens that are not ignored, not yet divided by their total.
    weights = p.exponentials
    least = np.exp(np.float32(LEAST)) * p.total
    np.multiply(weights, weights > least[:, None].astype(np.float32), out=weights)
    counted = weights.sum(axis=1, dtype=np.float64)
    found = []
    for logits in artifacts:
        q = softmax(logits)
        moved = reference - logits
        np.multiply(moved, weights, out=moved)
        # log p - log q is what the logits differ by and what their normalizers do.
        total = moved.sum(axis=1, dtype=np.float64) + counted * (q.log_total - p.log_total)
        found.append(
            TokenScores(
                kl=total / p.total,
                losses=q.log_total - logits[every, targets],
                reference_losses=p.log_total - reference[every, targets],
                same_top=q.best == p.best,
            )
        )
    return found
