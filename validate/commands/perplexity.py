"""mval perplexity."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mconv.convert.cli.console import emit_json, emit_table
from mconv.convert.layouts.layout import ReadOptions
from mconv.validate.commands.shared import (
    DEFAULT_CONTEXT,
    artifacts_argument,
    chunks_option,
    ctx_option,
    fail_on_findings,
    json_option,
    note_long_context,
    read_options,
    text_option,
    threads_option,
)

if TYPE_CHECKING:
    import numpy as np

    from mconv.inference.language_model import LanguageModel
    from mconv.validate.divergence.perplexity import Perplexity, PerplexityResult
    from mconv.validate.subject import Subject


@click.command("perplexity")
@artifacts_argument
@text_option(required=True)
@ctx_option(default=DEFAULT_CONTEXT, show_default=True)
@chunks_option
@read_options
@threads_option
@json_option
def command(
    artifacts: tuple[Path, ...],
    texts: tuple[Path, ...],
    ctx: int,
    chunks: int | None,
    reading: ReadOptions,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure perplexity on texts as llama-perplexity does.

    An ARTIFACT is a GGUF file, or the folder of a Hugging Face or Megatron checkpoint, which is run with transformers.

    \b
    Examples:
      mval perplexity model-Q4_K_M.gguf --text wiki.test.raw
      mval perplexity model-*.gguf model/ --text prose.txt --text code.txt --chunks 20 --json
    """
    from mconv.inference.chunks import read_text
    from mconv.validate.subject import open_subjects

    contents = {text: read_text(text) for text in texts}
    with open_subjects(artifacts, reading=reading, threads=threads) as subjects:
        for subject in subjects:
            subject.check_runnable()
        results = [row for subject in subjects for row in _measure_subject(subject, contents, ctx, chunks)]
    if as_json:
        emit_json({"results": [result.to_json() for result in results]})
    else:
        _print(results)
    fail_on_findings(
        ((str(result.file), finding) for result in results for finding in result.findings),
        "the weights contain NaN or Inf, or produce them; convert again from a source that is known to be good",
    )


def _measure_subject(
    subject: Subject, contents: dict[Path, str], ctx: int, limit: int | None
) -> Iterator[PerplexityResult]:
    """One result per text; the subject is closed after the last."""
    from mconv.inference.chunks import cut, with_bos
    from mconv.validate.divergence.perplexity import PerplexityResult

    began = time.perf_counter()
    with subject:
        model = subject.model()
        note_long_context(model, ctx)
        # Read all texts first: a text that is too short is reported before another one runs for hours.
        tokens = {text: model.vocabulary.tokenize(content) for text, content in contents.items()}
        cuts = {text: cut(found, ctx, limit, text=text) for text, found in tokens.items()}
        for text, chunks in cuts.items():
            measured = _measure(model, with_bos(model.vocabulary, chunks))
            yield PerplexityResult(subject.path, text, measured, len(chunks), time.perf_counter() - began)
            began = time.perf_counter()


def _print(results: list[PerplexityResult]) -> None:
    emit_table(
        ("file", "text", "perplexity", "tokens", "chunks", "seconds"),
        [
            (
                str(result.file),
                str(result.text),
                f"{result.perplexity.value:.4f} +/- {result.perplexity.standard_error:.4f}",
                str(result.perplexity.tokens),
                str(result.chunks),
                f"{result.seconds:.1f}",
            )
            for result in results
        ],
    )


def _measure(model: LanguageModel, chunks: np.ndarray) -> Perplexity:
    from mconv.convert.reporting import progress_bar
    from mconv.inference.schedule import scored_per_chunk
    from mconv.validate.divergence.perplexity import perplexity

    count, length = chunks.shape
    with progress_bar(count * scored_per_chunk(length), model.path.name, "tok") as bar:

        def show(tokens: int, so_far: Perplexity) -> None:
            bar.update(tokens, f"perplexity {so_far.value:.4f}")

        return perplexity(model, chunks, show)
