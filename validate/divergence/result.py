"""The divergence of an artifact from its reference on a text: all statistics with their errors.

Statistics and their definitions are those of llama-perplexity --kl-divergence (llama.cpp
tools/perplexity/perplexity.cpp).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.validate.divergence.perplexity import Perplexity, exp
from mconv.validate.divergence.statistics import Distribution
from mconv.validate.findings import Finding


@dataclass(frozen=True)
class Statistics:
    """The statistics of a comparison of two models, token by token. Pairs are a value and its standard error.

    Attributes:
        kl: KL divergence of a token's probabilities from the reference's, in nats.
        delta_p: probability of the next token minus its probability in the reference; from -1 to 1.
        delta_p_square: mean of its square.
        same_top: share of the positions at which both models find the same token most likely, from 0 to 1.
        perplexity, reference_perplexity: the perplexity of the artifact and of the reference.
        products: sum over the tokens of the product of the two negative log-likelihoods.
    """

    kl: Distribution
    delta_p: Distribution
    delta_p_square: tuple[float, float]
    same_top: float
    perplexity: Perplexity
    reference_perplexity: Perplexity
    products: float

    @property
    def tokens(self) -> int:
        """Scored tokens."""
        return self.perplexity.tokens

    @property
    def ln_ratio(self) -> tuple[float, float]:
        """Logarithm of the ratio of the perplexities, and its standard error: the two are correlated."""
        (mine, my_error), (other, other_error) = self.perplexity.log_mean, self.reference_perplexity.log_mean
        return mine - other, _root(my_error**2 + other_error**2 - 2 * self._covariance)

    @property
    def ratio(self) -> tuple[float, float]:
        """The perplexity divided by that of the reference, and its standard error."""
        value, error = self.ln_ratio
        return exp(value), exp(value) * error

    @property
    def difference(self) -> tuple[float, float]:
        """The perplexity minus that of the reference, and its standard error."""
        mine, other = self.perplexity, self.reference_perplexity
        both = mine.value * other.value * self._covariance
        return mine.value - other.value, _root(mine.standard_error**2 + other.standard_error**2 - 2 * both)

    @property
    def correlation(self) -> float:
        """The correlation of the negative log-likelihoods of the two models; NaN if one of them is constant."""
        errors = self.perplexity.log_mean[1] * self.reference_perplexity.log_mean[1]
        return self._covariance / errors if errors else math.nan

    @property
    def delta_p_rms(self) -> tuple[float, float]:
        """Root of the mean square of `delta_p`, and its standard error."""
        square, error = self.delta_p_square
        return math.sqrt(square), 0.5 * error / math.sqrt(square) if square else 0.0

    @property
    def same_top_standard_error(self) -> float:
        """The standard error of `same_top`."""
        return _root(self.same_top * (1 - self.same_top) / (self.tokens - 1)) if self.tokens > 1 else math.nan

    @property
    def _covariance(self) -> float:
        """The covariance of the mean negative log-likelihoods of the two models."""
        if self.tokens < 2:
            return math.nan
        mine, other = self.perplexity.log_mean[0], self.reference_perplexity.log_mean[0]
        return (self.products / self.tokens - mine * other) / (self.tokens - 1)


@dataclass(frozen=True)
class Divergence:
    """The divergence of an artifact from its reference on one text.

    Attributes:
        file, reference, text: paths as given; no text if the reference is a logits file, which contains the tokens.
        statistics: all the numbers.
        chunks: chunks run.
        seconds: wall time of the artifact's forward passes and of its statistics.
        reference_seconds: wall time of the reference's forward passes, which all artifacts share.
        findings: logits that are not finite; tokens that differ in the artifact's own vocabulary.
    """

    file: Path
    reference: Path
    text: Path | None
    statistics: Statistics
    chunks: int
    seconds: float
    reference_seconds: float
    findings: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        numbers = self.statistics
        ln_ratio, ratio, difference, rms = numbers.ln_ratio, numbers.ratio, numbers.difference, numbers.delta_p_rms
        return {
            "file": str(self.file),
            "reference": str(self.reference),
            "text": str(self.text) if self.text else None,
            "kl": numbers.kl.to_json(),
            "same_top": numbers.same_top,
            "perplexity": numbers.perplexity.value,
            "reference_perplexity": numbers.reference_perplexity.value,
            "ln_ratio": ln_ratio[0],
            "delta_p_rms": rms[0],
            "tokens": numbers.tokens,
            "seconds": round(self.seconds, 3),
            "reference_seconds": round(self.reference_seconds, 3),
            "chunks": self.chunks,
            "same_top_standard_error": numbers.same_top_standard_error,
            "perplexity_standard_error": numbers.perplexity.standard_error,
            "reference_perplexity_standard_error": numbers.reference_perplexity.standard_error,
            "ln_ratio_standard_error": ln_ratio[1],
            "delta_p_rms_standard_error": rms[1],
            "ratio": ratio[0],
            "ratio_standard_error": ratio[1],
            "difference": difference[0],
            "difference_standard_error": difference[1],
            "correlation": numbers.correlation,
            "delta_p": numbers.delta_p.to_json(),
            "findings": [finding.to_json() for finding in self.findings],
        }


def _root(square: float) -> float:
    """The square root of a value that only rounding can make negative; NaN stays NaN."""
    return math.sqrt(0.0 if square < 0 else square)
