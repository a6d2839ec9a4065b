"""Accumulate the scores of an artifact while a text runs, and compute the statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mconv.validate.divergence.comparison import TokenScores
from mconv.validate.divergence.perplexity import Perplexity
from mconv.validate.divergence.result import Statistics
from mconv.validate.divergence.statistics import Distribution, mean_and_error
from mconv.validate.findings import Finding

if TYPE_CHECKING:
    import numpy as np

    from mconv.inference.schedule import LogitBlock


class Tally:
    """Sums over the tokens so far, and, for quantiles, two float32 values per token."""

    def __init__(self) -> None:
        self._kl: list[np.ndarray] = []
        self._delta_p: list[np.ndarray] = []
        self._same_top = 0
        self._perplexity = self._reference_perplexity = Perplexity()
        self._products = 0.0
        self._not_finite: tuple[int, int, bool] | None = None

    def add(self, reference: LogitBlock, scores: TokenScores) -> None:
        """Add a block.

        Args:
            reference: the logits of the reference.
            scores: the scores of the artifact.
        """
        import numpy as np

        self._kl.append(scores.kl.astype(np.float32))
        self._delta_p.append(scores.delta_p.astype(np.float32))
        self._same_top += int(scores.same_top.sum())
        self._perplexity = self._perplexity.add(scores.losses)
        self._reference_perplexity = self._reference_perplexity.add(scores.reference_losses)
        self._products += float(scores.losses @ scores.reference_losses)
        finite = np.isfinite(scores.kl)
        if self._not_finite is None and not finite.all():
            row = int(finite.argmin())
            reference_is_finite = bool(np.isfinite(reference.logits[row]).all())
            self._not_finite = (reference.chunk, reference.position + row, reference_is_finite)

    def statistics(self) -> Statistics:
        """The statistics over all tokens so far."""
        import numpy as np

        delta_p = np.concatenate(self._delta_p).astype(np.float64)
        squares = np.square(delta_p)
        return Statistics(
            kl=Distribution.of(np.concatenate(self._kl).astype(np.float64)),
            delta_p=Distribution.of(delta_p),
            delta_p_square=mean_and_error(squares.sum(), np.square(squares).sum(), len(squares)),
            same_top=self._same_top / self._perplexity.tokens,
            perplexity=self._perplexity,
            reference_perplexity=self._reference_perplexity,
            products=self._products,
        )

    def findings(self, subject: str, reference: Path, artifact: Path) -> list[Finding]:
        """Findings about the first logits that are not finite, and which model they are from.

        Args:
            subject: the text.
        """
        if self._not_finite is None:
            return []
        chunk, position, reference_is_finite = self._not_finite
        whose = artifact if reference_is_finite else reference
        what = f"{subject}: the logits of {whose} are not finite, first in chunk {chunk} at position {position}"
        return [Finding("kl", "not_finite_logits", subject, what)]
