"""mval: the command line."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convert import __version__
from convert.console import emit_json, emit_table, note, run_command
from convert.errors import ValidationError

if TYPE_CHECKING:
    import numpy as np

    from validate.generation import Generation
    from validate.perplexity import Perplexity
    from validate.runtime import Runtime

# A file that cannot be read is for the operating system to report: exit code 4, not one of usage.
PATH = click.Path(path_type=Path, readable=False)
ARTIFACTS = click.argument("files", metavar="FILE.gguf ...", nargs=-1, required=True, type=PATH)
THREADS = click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads to work with.  [default: all cores]"
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mval")
def cli() -> None:
    """Is the artifact what the source was, and how much did it lose."""


@cli.command()
@ARTIFACTS
@click.option("--text", required=True, type=PATH, metavar="FILE", help="The text, in UTF-8.")
@click.option(
    "--ctx", default=512, show_default=True, type=click.IntRange(min=8), metavar="N", help="Tokens in a chunk."
)
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Score the first N chunks.  [default: all]")
@THREADS
@JSON
def perplexity(
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
    _check_headers(files)
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


@cli.command()
@ARTIFACTS
@click.option("--prompt", "prompts", required=True, multiple=True, metavar="TEXT", help="What to answer; repeatable.")
@click.option(
    "--max-tokens",
    default=128,
    show_default=True,
    type=click.IntRange(1, 1 << 20),
    metavar="N",
    help="Stop after N tokens.",
)
@THREADS
@JSON
def generate(
    files: tuple[Path, ...], prompts: tuple[str, ...], max_tokens: int, threads: int | None, as_json: bool
) -> None:
    """Greedy answers, with the chat template and without.

    \b
    Examples:
      mval generate model-Q4_K_M.gguf --prompt "What is the capital of France?"
      mval generate model-*.gguf --prompt "Once upon a time" --max-tokens 64 --json
    """
    from validate.generation import generate as answer
    from validate.runtime import Runtime

    _check_headers(files)
    results: list[tuple[Path, str, Generation]] = []
    for file in files:
        with Runtime(file, threads) as runtime:
            results += [(file, prompt, made) for prompt in prompts for made in answer(runtime, prompt, max_tokens)]
    if as_json:
        emit_json({"results": [{"file": str(file), "prompt": prompt, **vars(made)} for file, prompt, made in results]})
        return
    emit_table(
        ("file", "prompt", "template", "tokens", "tokens/s", "flags", "text"),
        [
            (
                str(file),
                _one_line(prompt, 30),
                "yes" if made.template else "no",
                str(made.tokens),
                f"{made.tokens_per_second:.1f}" if made.tokens_per_second else "",
                ", ".join(made.flags) or "none",
                _one_line(made.error or made.text),
            )
            for file, prompt, made in results
        ],
    )


def main() -> None:
    """Entry point of `mval`."""
    run_command(cli)


def _check_headers(files: tuple[Path, ...]) -> None:
    """Every file before the first is run: what is wrong with the last one is told at once."""
    from validate.header import check_header

    for file in files:
        check_header(file)


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


def _one_line(text: str, width: int = 100) -> str:
    """A text that nobody vouches for, safe to print: no line breaks, no escape sequences."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= width else shown[: width - 3] + "..."
