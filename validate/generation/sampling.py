"""Choosing the next token: the likeliest, or by lot with the settings that a model's makers recommend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mconv.convert.model.metadata import Metadata
from mconv.convert.model.provenance import SAMPLING

if TYPE_CHECKING:
    import numpy as np

Choose = Callable[["np.ndarray"], int]
"""From the logits of one position, float32[vocabulary], to a token."""


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn, with the names of generation_config.json. What is None changes nothing.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: so many of the likeliest tokens stay.
        top_p: the likeliest tokens that together have this probability stay.
        min_p: tokens with at least this share of the likeliest one's probability stay.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members, those that change something."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def recommended(metadata: Metadata) -> SamplingSettings | None:
    """The settings in a GGUF file (`general.sampling.*`); None where it has none."""
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
    """Draws tokens as transformers does (generation/logits_process.py): temperature, top k, top p, min p, then a lot.

    Args:
        seed: the same seed draws the same tokens from the same logits.
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
            # A token stays if those before it do not have the probability yet; the first always does.
            weights = weights[: max(1, int((shares.cumsum() - shares < settings.top_p).sum()))]
        if settings.min_p is not None:
            weights = weights[weights >= settings.min_p * weights[0]]
        return int(order[random.choice(len(weights), p=weights / weights.sum())])

    return choose
