"""mval perplexity."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convert.console import emit_json, emit_table, note
from convert.errors import ValidationError
from validate.commands.shared import check_headers, files_argument, json_option, path_type, threads_option

if TYPE_CHECKING:
    import numpy as np

    from validate.perplexity import Perplexity
    from validate.runtime import Runtime


@click.command("perplexity")
@files_argument
@click.option("--text", required=True, type=path_type, metavar="FILE", help="The text, in UTF-8.")
@click.option(
    "--ctx", default=512, show_default=True, type=click.IntRange(min=8), metavar="N", help="Tokens in a chunk."
)
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Score the first N chunks.  [default: all]")
@threads_option
@json_option
def command(
    files: tuple[Path, ...], text: Path, ctx: int, chunks: int | None, threads: int | None, as_json: bool
) -> None:
    """Perplexity on a text, as llama-perplexity has it.

    \b
    Examples:
      mval perplexity model-Q4_K_M.gguf --text wiki.test.raw
      mval perplexity model-*.gguf --text eval.txt --chunks 20 --json
    """
    from validate.chunks import chunk, read_text
    from validate.runtime import Runtime

    content = read_text(text)
    check_headers(files)
    results: list[dict[str, Any]] = []
    for file in files:
        began = time.perf_counter()
        with Runtime(file, threads) as runtime:
            _note_long_context(runtime, ctx)
            cut = chunk(runtime, content, ctx, chunks)
            measured = _measure(runtime, cut)
        results.append(
            {
                "file": str(file),
                "text": str(text),
                "perplexity": measured.value,
                "standard_error": measured.standard_error,
                "tokens": measured.tokens,
                "chunks": len(cut),
                "seconds": round(time.perf_counter() - began, 3),
            }
        )
    if as_json:
        emit_json({"results": results})
    else:
        _print_perplexities(results)
    broken = [row["file"] for row in results if not math.isfinite(row["perplexity"])]
    if broken:
        raise ValidationError(
            f"{', '.join(broken)}: the perplexity is not finite",
            "the weights hold NaN or Inf, or lead to them; convert again from a source that is known to be good",
        )


def _print_perplexities(results: list[dict[str, Any]]) -> None:
    emit_table(
        ("file", "text", "perplexity", "tokens", "chunks", "seconds"),
        [
            (
                row["file"],
                row["text"],
                f"{row['perplexity']:.4f} +/- {row['standard_error']:.4f}",
                str(row["tokens"]),
                str(row["chunks"]),
                f"{row['seconds']:.1f}",
            )
            for row in results
        ],
    )


def _measure(runtime: Runtime, chunks: np.ndarray) -> Perplexity:
    import sys

    from tqdm import tqdm

    from validate.chunks import scored_per_chunk
    from validate.perplexity import perplexity

    count, length = chunks.shape
    with tqdm(
        total=count * scored_per_chunk(length),
        desc=runtime.path.name,
        unit="tok",
        disable=None,
        file=sys.stderr,
        dynamic_ncols=True,
    ) as bar:

        def show(tokens: int, so_far: Perplexity) -> None:
            bar.set_postfix_str(f"perplexity {so_far.value:.4f}", refresh=False)
            bar.update(tokens)

        return perplexity(runtime, chunks, show)


def _note_long_context(runtime: Runtime, length: int) -> None:
    if length > runtime.trained_context:
        note(f"note: {runtime.path}: trained on {runtime.trained_context} tokens of context, asked for {length}")
