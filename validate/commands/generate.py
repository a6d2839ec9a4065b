"""mval generate."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convert.console import emit_json, emit_table
from validate.commands.shared import (
    check_headers,
    fail_on_findings,
    files_argument,
    hf_config_option,
    json_option,
    one_line,
    path_type,
    threads_option,
)

if TYPE_CHECKING:
    from validate.generation.generate import Generation


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
@click.option(
    "--samples",
    default=0,
    show_default=True,
    type=click.IntRange(0, 1000),
    metavar="N",
    help="Draw N answers besides, with the settings that the file recommends.",
)
@click.option("--reference", type=path_type, metavar="SRC", help="A model to hold the greedy answers against.")
@hf_config_option
@threads_option
@json_option
def command(
    files: tuple[Path, ...],
    prompts: tuple[str, ...],
    max_tokens: int,
    samples: int,
    reference: Path | None,
    hf_config: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Greedy answers, with the chat template and without; drawn ones too; and how far a reference writes the same.

    \b
    Examples:
      mval generate model-Q4_K_M.gguf --prompt "What is the capital of France?"
      mval generate model-*.gguf --reference model/ --prompt "Once upon a time" --samples 4 --json
    """
    from validate.generation.generate import generate
    from validate.models.model import check_models, open_model
    from validate.models.runtime import Runtime

    check_headers(files)
    if reference is not None:
        check_models((reference,), hf_config)
    results: list[tuple[Path, str, Generation]] = []
    with ExitStack() as stack:
        original = stack.enter_context(open_model(reference, threads, hf_config)) if reference else None
        for file in files:
            with Runtime(file, threads) as runtime:
                results += [
                    (file, prompt, made)
                    for prompt in prompts
                    for made in generate(runtime, prompt, max_tokens, samples=samples, reference=original)
                ]
    if as_json:
        emit_json({"results": [describe(file, prompt, made) for file, prompt, made in results]})
    else:
        _print(results)
    fail_on_findings(
        ((str(file), finding) for file, prompt, made in results for finding in made.findings(prompt)),
        "convert again from a source that is known to be good",
    )


def describe(file: Path, prompt: str, made: Generation) -> dict[str, object]:
    """One result for JSON."""
    findings = [finding.to_json() for finding in made.findings(prompt)]
    return {"file": str(file), "prompt": prompt, **made.to_json(), "findings": findings}


def _print(results: list[tuple[Path, str, Generation]]) -> None:
    emit_table(
        ("file", "prompt", "template", "drawn", "tokens", "tokens/s", "first s", "agrees", "flags", "text"),
        [
            (
                str(file),
                one_line(prompt, 30),
                "yes" if made.template else "no",
                f"seed {made.seed}" if made.sampling else "no",
                str(made.tokens),
                f"{made.tokens_per_second:.1f}" if made.tokens_per_second else "",
                f"{made.seconds_to_first_token:.2f}" if made.seconds_to_first_token is not None else "",
                f"{made.agreement.common_prefix} of {made.agreement.tokens}" if made.agreement else "",
                ", ".join(made.flags) or "none",
                one_line(made.error or made.text),
            )
            for file, prompt, made in results
        ],
    )
