"""Every statistic by its definition, in float64, from all logits at once."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mconv.inference.chunks import cut, read_text, with_bos
from mconv.inference.llama_cpp_model import LlamaCppModel
from mconv.inference.open_model import open_model
from mconv.inference.schedule import Schedule
from mconv.validate.divergence.lockstep import measure_divergence
from mconv.validate.divergence.result import Divergence

from support.paths import EXAMPLES

EXAMPLE, EVALUATION = EXAMPLES / "tiny-mistral", EXAMPLES / "tiny-mistral-eval.txt"
LENGTH = 128


def write_text(path: Path, seed: int = 3, size: int = 1600) -> Path:
    """Letters, each of which is a token of `tiny_gguf`."""
    letters = np.random.default_rng(seed).integers(97, 123, size)
    path.write_bytes(bytes(letters.tolist()))
    return path


def measure(reference: Path, *artifacts: Path, texts: list[Path], limit: int | None = None) -> list[Divergence]:
    with open_model(reference, 1) as base:
        opened = [open_model(artifact, 1) for artifact in artifacts]
        try:
            return measure_divergence(base, opened, texts, length=LENGTH, limit=limit)
        finally:
            for artifact in opened:
                artifact.__exit__(None, None, None)


def all_logits(path: Path, text: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits of every scored position, chunk by chunk, float64[tokens, vocabulary]; and the tokens that follow."""
    with LlamaCppModel(path, threads=1) as runtime:
        read = with_bos(runtime.vocabulary, cut(runtime.vocabulary.tokenize(read_text(text)), LENGTH))
        logits = np.full((*read.shape, runtime.vocab_size), np.nan)
        for block in runtime.scored_logits(read, Schedule.of(read.shape, runtime.vocab_size, 2)):
            logits[block.chunk, block.position : block.position + len(block.targets)] = block.logits
    half = LENGTH // 2
    return logits[:, half:-1].reshape(-1, logits.shape[-1]), read[:, half + 1 :].reshape(-1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def spread(values: np.ndarray, prefix: str) -> dict[str, float]:
    """Mean, error and quantiles, each by its definition."""
    ordered = np.sort(values)

    def quantile(fraction: float) -> float:
        place = fraction * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    percentiles = {"p99_9": 99.9, "p99": 99, "p95": 95, "p90": 90, "p75": 75, "p25": 25, "p10": 10, "p5": 5, "p1": 1}
    found = {name: quantile(percent / 100) for name, percent in {**percentiles, "p0_1": 0.1, "median": 50}.items()}
    found |= {"min": ordered[0], "max": ordered[-1], "mean": values.mean()}
    found |= {"standard_error": values.std() / math.sqrt(len(values) - 1)}
    return {f"{prefix}.{name}": value for name, value in found.items()}


def by_definition(base: np.ndarray, other: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Every number of the result, from all logits at once, in float64."""
    log_p, log_q = log_softmax(base), log_softmax(other)
    counted = log_p > -16
    kl = np.where(counted, np.exp(log_p) * (log_p - log_q), 0).sum(axis=1)
    every, count = np.arange(len(targets)), len(targets)
    p, q = -log_p[every, targets], -log_q[every, targets]
    delta = np.exp(-q) - np.exp(-p)
    covariance = np.cov(q, p, ddof=0) / (count - 1)
    ratio_error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    mine, theirs = math.exp(q.mean()), math.exp(p.mean())
    slopes = np.array([mine, -theirs])
    same = (base.argmax(axis=1) == other.argmax(axis=1)).mean()
    rms = math.sqrt((delta**2).mean())
    return {
        **spread(kl, "kl"),
        **spread(delta, "delta_p"),
        "same_top": same,
        "same_top_standard_error": math.sqrt(same * (1 - same) / (count - 1)),
        "perplexity": mine,
        "perplexity_standard_error": mine * math.sqrt(covariance[0, 0]),
        "reference_perplexity": theirs,
        "reference_perplexity_standard_error": theirs * math.sqrt(covariance[1, 1]),
        "ln_ratio": q.mean() - p.mean(),
        "ln_ratio_standard_error": ratio_error,
        "ratio": mine / theirs,
        "ratio_standard_error": mine / theirs * ratio_error,
        "difference": mine - theirs,
        "difference_standard_error": math.sqrt(slopes @ covariance @ slopes),
        "correlation": np.corrcoef(q, p)[0, 1],
        "delta_p_rms": rms,
        "delta_p_rms_standard_error": 0.5 / rms * (delta**2).std() / math.sqrt(count - 1),
        "tokens": count,
    }


def numbers(result: Divergence) -> dict[str, float]:
    """The numbers of a result that do not depend on the clock, a level deep."""
    members = result.to_json()
    flat = {f"{outer}.{name}": value for outer in ("kl", "delta_p") for name, value in members.pop(outer).items()}
    left_out = ("file", "reference", "text", "findings", "seconds", "reference_seconds", "chunks")
    return flat | {name: value for name, value in members.items() if name not in left_out}
