"""Choose the next token: the most likely one, or a random one with the model's recommended settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mconv.convert.model.metadata import Metadata
from mconv.convert.model.provenance import SAMPLING

if TYPE_CHECKING:
    import numpy as np

Choose = Callable[["np.ndarray"], int]
"""Chooses a token from the logits of one position, float32[vocabulary]."""


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of sampling, with the names of generation_config.json. None means that a setting is not used.

    Attributes:
        temperature: logits are divided by it; 0 chooses the most likely token.
        top_k: keep only this many of the most likely tokens.
        top_p: keep only the most likely tokens that together have this probability.
        min_p: keep only tokens with at least this share of the probability of the most likely one.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members, without unused settings."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def recommended(metadata: Metadata) -> SamplingSettings | None:
    """The settings in a GGUF file (`general.sampling.*`); None if it has none."""
    known: Mapping[str, Any] = {
        name: metadata[f"general.sampling.{key}"].content
        for name, (key, _) in SAMPLING.items()
        if f"general.sampling.{key}" in metadata
    }
    if not known:
        return None
    return SamplingSettings(**{name: known[name] for name in SamplingSettings.__annotations__ if name in known})


def likeliest(logits: np.ndarray) -> int:
    """The token with the largest logit."""
    return int(logits.argmax())


def sampler(settings: SamplingSettings, seed: int) -> Choose:
    """Sample tokens like transformers (generation/logits_process.py): temperature, top k, top p, min p, then a draw.

    Args:
        seed: the same seed gives the same tokens for the same logits.
    """
    import numpy as np

    if not settings.temperature:
        return likeliest
    random = np.random.default_rng(seed)

    def choose(logits: np.ndarray) -> int:
        order = np.argsort(-logits, kind="stable")[: settings.top_k or None]
        scaled = logits[order].astype(np.float64) / settings.temperature
        weights = np.exp(scaled - scaled[0])
        if settings.top_p is not None:
            shares = weights / weights.sum()
            # Keep a token if those before it do not reach the probability; the first one is always kept.
            weights = weights[: max(1, int((shares.cumsum() - shares < settings.top_p).sum()))]
        if settings.min_p is not None:
            weights = weights[weights >= settings.min_p * weights[0]]
        return int(order[random.choice(len(weights), p=weights / weights.sum())])

    return choose
