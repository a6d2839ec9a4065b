"""mval generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from convert.console import emit_json, emit_table
from validate.commands.shared import check_headers, files_argument, json_option, one_line, threads_option

if TYPE_CHECKING:
    from validate.generation import Generation


@click.command("generate")
@files_argument
@click.option("--prompt", "prompts", required=True, multiple=True, metavar="TEXT", help="What to answer; repeatable.")
@click.option(
    "--max-tokens",
    default=128,
    show_default=True,
    type=click.IntRange(1, 1 << 20),
    metavar="N",
    help="Stop after N tokens.",
)
@threads_option
@json_option
def command(
    files: tuple[Path, ...], prompts: tuple[str, ...], max_tokens: int, threads: int | None, as_json: bool
) -> None:
    """Greedy answers, with the chat template and without.

    \b
    Examples:
      mval generate model-Q4_K_M.gguf --prompt "What is the capital of France?"
      mval generate model-*.gguf --prompt "Once upon a time" --max-tokens 64 --json
    """
    from validate.generation import generate
    from validate.runtime import Runtime

    check_headers(files)
    results: list[tuple[Path, str, Generation]] = []
    for file in files:
        with Runtime(file, threads) as runtime:
            results += [(file, prompt, made) for prompt in prompts for made in generate(runtime, prompt, max_tokens)]
    if as_json:
        emit_json({"results": [{"file": str(file), "prompt": prompt, **vars(made)} for file, prompt, made in results]})
        return
    emit_table(
        ("file", "prompt", "template", "tokens", "tokens/s", "flags", "text"),
        [
            (
                str(file),
                one_line(prompt, 30),
                "yes" if made.template else "no",
                str(made.tokens),
                f"{made.tokens_per_second:.1f}" if made.tokens_per_second else "",
                ", ".join(made.flags) or "none",
                one_line(made.error or made.text),
            )
            for file, prompt, made in results
        ],
    )
