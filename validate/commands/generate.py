"""mval generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mconv.convert.cli.console import emit_json, emit_table
from mconv.convert.layouts.layout import ReadOptions
from mconv.validate.commands.shared import (
    artifacts_argument,
    fail_on_findings,
    json_option,
    one_line,
    prompt_option,
    read_options,
    source_type,
    threads_option,
)

if TYPE_CHECKING:
    from mconv.validate.generation.answers import Answer


@click.command("generate")
@artifacts_argument
@prompt_option(required=True)
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
    help="Also sample N answers, with the model's recommended settings.",
)
@click.option("--reference", type=source_type, metavar="SRC", help="A model to compare the greedy answers with.")
@read_options
@threads_option
@json_option
def command(
    artifacts: tuple[Path, ...],
    prompts: tuple[str, ...],
    max_tokens: int,
    samples: int,
    reference: Path | None,
    reading: ReadOptions,
    threads: int | None,
    as_json: bool,
) -> None:
    """Generate greedy and sampled answers, with and without the chat template, and compare them with a reference.

    The reference and each ARTIFACT are GGUF files, or folders of Hugging Face or Megatron checkpoints, which are run
    with transformers.

    \b
    Examples:
      mval generate model-Q4_K_M.gguf --prompt "What is the capital of France?"
      mval generate model-*.gguf --reference model/ --prompt "Once upon a time" --samples 4 --json
    """
    from mconv.validate.generation.answers import answer_prompts
    from mconv.validate.subject import open_subjects

    paths = (*artifacts, reference) if reference else artifacts
    with open_subjects(paths, reading=reading, threads=threads) as subjects:
        for subject in subjects:
            subject.check_runnable()
        original = subjects.pop() if reference else None
        answers = answer_prompts(subjects, prompts, max_tokens, samples=samples, reference=original)
    if as_json:
        emit_json({"results": [answer.to_json() for answer in answers]})
    else:
        _print(answers)
    fail_on_findings(
        ((str(answer.file), finding) for answer in answers if answer.file in artifacts for finding in answer.findings),
        "convert again from a source that is known to be good",
    )


def _print(answers: list[Answer]) -> None:
    emit_table(
        ("file", "prompt", "template", "drawn", "tokens", "tokens/s", "first s", "agrees", "flags", "text"),
        [
            (
                str(answer.file),
                one_line(answer.prompt, 30),
                "yes" if made.template else "no",
                f"seed {made.seed}" if made.sampling else "no",
                str(made.tokens),
                f"{made.tokens_per_second:.1f}" if made.tokens_per_second else "",
                f"{made.seconds_to_first_token:.2f}" if made.seconds_to_first_token is not None else "",
                f"{made.agreement.common_prefix} of {made.agreement.tokens}" if made.agreement else "",
                ", ".join(made.flags) or "none",
                one_line(made.error or made.text),
            )
            for answer in answers
            for made in (answer.made,)
        ],
    )
