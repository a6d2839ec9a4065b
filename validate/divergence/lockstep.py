"""Run reference and artifacts in parallel, chunk by chunk: one pass of the reference for all artifacts.

Besides the models, memory holds the logits of one step of each model, and two float32 per scored token and artifact for
the quantiles.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.reporting import progress_bar
from mconv.inference.chunks import cut, read_text, with_bos
from mconv.inference.language_model import LanguageModel, LogitSource, common_vocabulary
from mconv.inference.schedule import LogitBlock, Schedule, scored_per_chunk
from mconv.validate.divergence.comparison import compare
from mconv.validate.divergence.logits_file import LogitsFile, LogitsWriter
from mconv.validate.divergence.result import Divergence
from mconv.validate.divergence.tally import Tally
from mconv.validate.findings import Finding

if TYPE_CHECKING:
    import numpy as np


def measure_divergence(
    reference: LanguageModel | LogitsFile,
    artifacts: Sequence[LanguageModel],
    texts: Sequence[Path],
    *,
    length: int = 512,
    limit: int | None = None,
    save_logits: Path | None = None,
) -> list[Divergence]:
    """Compare artifacts with their reference on some texts, in one pass of the reference over each.

    All models read the token ids of the reference. A logits file contains the tokens, but not whether BOS replaced the
    first token of each chunk; as in llama-perplexity, it does if the vocabulary of the artifact adds BOS.

    Args:
        reference: a loaded model, or the log-probabilities that another run saved.
        artifacts: loaded models.
        texts: UTF-8 text files; empty for a logits file.
        length: tokens per chunk; ignored for a logits file.
        limit: maximum number of chunks per text.
        save_logits: where to save the reference's log-probabilities of a single text, in llama.cpp's format.

    Returns:
        One result per artifact and text, in the order of the artifacts, then of the texts.

    Raises:
        SourceError: a model cannot be run, or a text is too short or not UTF-8.
        UsageError: the models have vocabularies of different sizes.
        DiskError: the logits cannot be saved.
    """
    vocab = common_vocabulary((reference, *artifacts))
    if isinstance(reference, LogitsFile):
        chunks = reference.chunks[:limit]
        of_artifacts = [with_bos(artifact.vocabulary, chunks) for artifact in artifacts]
        readings = [_Reading(None, chunks, chunks, of_artifacts, [()] * len(artifacts))]
    else:
        readings = [_read(reference, artifacts, text, length, limit) for text in texts]
    passes = [_run(reference, artifacts, reading, vocab, save_logits) for reading in readings]
    return [result for of_artifact in zip(*passes, strict=True) for result in of_artifact]


@dataclass(frozen=True)
class _Reading:
    """A text in chunks, and the chunks that each model reads: int32[chunks, length].

    Attributes:
        text: its file; None if the tokens are from a logits file.
        chunks: the tokens of the text.
        of_reference, of_artifacts: the chunks including BOS.
        findings: the findings for each artifact.
    """

    text: Path | None
    chunks: np.ndarray
    of_reference: np.ndarray
    of_artifacts: list[np.ndarray]
    findings: list[tuple[Finding, ...]]


def _read(
    reference: LanguageModel, artifacts: Sequence[LanguageModel], text: Path, length: int, limit: int | None
) -> _Reading:
    content = read_text(text)
    tokens = reference.vocabulary.tokenize(content)
    chunks = cut(tokens, length, limit, text=text)
    read = with_bos(reference.vocabulary, chunks)
    others = [artifact.vocabulary.tokenize(content)[: chunks.size] for artifact in artifacts]
    findings = [
        _compare_tokens(tokens[: chunks.size], other, text, artifact.path)
        for artifact, other in zip(artifacts, others, strict=True)
    ]
    return _Reading(text, chunks, read, [read] * len(artifacts), findings)


def _compare_tokens(tokens: np.ndarray, other: np.ndarray, text: Path, artifact: Path) -> tuple[Finding, ...]:
    import numpy as np

    if np.array_equal(tokens, other):
        return ()
    shared = min(len(tokens), len(other))
    differ = tokens[:shared] != other[:shared]
    first = int(differ.argmax()) if differ.any() else shared
    what = f"{text}: the vocabulary of {artifact} gives different tokens from token {first} on"
    return (Finding("kl", "other_tokens", str(text), what, "warn"),)


def _run(
    reference: LogitSource,
    artifacts: Sequence[LanguageModel],
    reading: _Reading,
    vocab: int,
    save_logits: Path | None,
) -> list[Divergence]:
    """Run one pass over one text, comparing the first `vocab` logits of each row."""
    models = (reference, *artifacts)
    schedule = Schedule.of(reading.chunks.shape, max(model.vocab_size for model in models), len(models))
    clocks = [_Clock() for _ in models]
    tallies = [Tally() for _ in artifacts]
    statistics = _Clock()
    total = len(reading.chunks) * scored_per_chunk(schedule.length)
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(total, (reading.text or reference.path).name, "tok"))
        pool = stack.enter_context(ThreadPoolExecutor(artifacts[0].threads))
        writer = None
        if save_logits is not None:
            writer = stack.enter_context(LogitsWriter(save_logits, reading.chunks, reference.vocab_size))
        # Always close it here: the context of a model must be freed before the model.
        passes = [
            stack.enter_context(closing(model.scored_logits(chunks, schedule)))
            for model, chunks in zip(models, [reading.of_reference, *reading.of_artifacts], strict=True)
        ]
        for blocks in zip(*map(_timed, passes, clocks), strict=True):
            if writer is not None:
                writer.write(blocks[0], pool)
            with statistics:
                base, *others = (replace(block, logits=block.logits[:, :vocab]) for block in blocks)
                stored = isinstance(reference, LogitsFile)
                found = compare(base, [block.logits for block in others], pool, stored=stored)
                for tally, scores in zip(tallies, found, strict=True):
                    tally.add(base, scores)
            bar.update(len(base.targets))
    return [
        Divergence(
            file=artifact.path,
            reference=reference.path,
            text=reading.text,
            statistics=tally.statistics(),
            chunks=len(reading.chunks),
            seconds=clock.seconds + statistics.seconds / len(artifacts),
            reference_seconds=clocks[0].seconds,
            findings=(*findings, *tally.findings(str(reading.text or reference.path), reference.path, artifact.path)),
        )
        for artifact, tally, clock, findings in zip(artifacts, tallies, clocks[1:], reading.findings, strict=True)
    ]


class _Clock:
    """Wall time spent in `with` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began


def _timed(blocks: Iterator[LogitBlock], clock: _Clock) -> Iterator[LogitBlock]:
    while True:
        with clock:
            block = next(blocks, None)
        if block is None:
            return
        yield block
