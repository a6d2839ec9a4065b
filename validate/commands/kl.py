"""mval kl."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mconv.convert.cli.console import emit_json, emit_table
from mconv.convert.errors import UsageError
from mconv.convert.layouts.layout import ReadOptions
from mconv.validate.commands.shared import (
    DEFAULT_CONTEXT,
    artifacts_argument,
    chunks_option,
    ctx_option,
    fail_on_findings,
    json_option,
    note_long_context,
    print_findings,
    read_options,
    source_type,
    text_option,
    threads_option,
)

if TYPE_CHECKING:
    from mconv.validate.divergence.result import Divergence


@click.command("kl")
@artifacts_argument
@click.option(
    "--reference",
    required=True,
    type=source_type,
    metavar="SRC",
    help="The model to compare with, or a file of its log-probabilities.",
)
@text_option()
@ctx_option(show_default=str(DEFAULT_CONTEXT))
@chunks_option
@read_options
@click.option(
    "--save-logits",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="OUT.kld",
    help="Save the reference's log-probabilities, in the format of llama-perplexity.",
)
@threads_option
@json_option
def command(
    artifacts: tuple[Path, ...],
    reference: Path,
    texts: tuple[Path, ...],
    ctx: int | None,
    chunks: int | None,
    reading: ReadOptions,
    save_logits: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure KL divergence from a reference as llama-perplexity does, without an intermediate file of logits.

    The reference and each ARTIFACT are GGUF files, or folders of Hugging Face or Megatron checkpoints, which are run
    with transformers. All models read each text in parallel.

    \b
    Examples:
      mval kl model-Q4_K_M.gguf model-Q6_K.gguf --reference model/ --text wiki.test.raw
      mval kl model-Q4_K_M.gguf --reference model-BF16.gguf --text prose.txt --text code.txt --json
      mval kl model-Q4_K_M.gguf --reference base.kld
    """
    from mconv.validate.divergence.lockstep import measure_divergence
    from mconv.validate.divergence.logits_file import LogitsFile, is_logits_file
    from mconv.validate.subject import open_subjects

    stored = is_logits_file(reference)
    _check_options(stored, texts, ctx, save_logits)
    paths = artifacts if stored else (reference, *artifacts)
    with open_subjects(paths, reading=reading, threads=threads) as subjects:
        for subject in subjects:
            subject.check_runnable()
        kept = LogitsFile(reference) if stored else None
        length = kept.chunks.shape[1] if kept else ctx or DEFAULT_CONTEXT
        models = [subject.model() for subject in subjects]
        for model in models:
            note_long_context(model, length)
        base, compared = (kept, models) if kept else (models[0], models[1:])
        results = measure_divergence(base, compared, texts, length=length, limit=chunks, save_logits=save_logits)
    if as_json:
        emit_json({"results": [result.to_json() for result in results]})
    else:
        _print_results(results)
        print_findings(finding for result in results for finding in result.findings)
    fail_on_findings(
        ((str(result.file), finding) for result in results for finding in result.findings),
        "the weights contain NaN or Inf, or produce them; convert again from a source that is known to be good",
    )


def _check_options(stored: bool, texts: tuple[Path, ...], ctx: int | None, save_logits: Path | None) -> None:
    """Reject options that do not apply to a reference of this kind.

    Raises:
        UsageError: an option does not apply, or is missing.
    """
    if stored:
        for given, name in ((texts, "--text"), (ctx, "--ctx"), (save_logits, "--save-logits")):
            if given:
                raise UsageError(
                    f"{name} does not apply to a file of log-probabilities, which contains the tokens",
                    f"leave {name} out",
                )
    elif not texts:
        raise UsageError("--text is missing", "give one or more texts with --text to compare the models on")
    elif save_logits is not None and len(texts) > 1:
        raise UsageError(f"--save-logits can save one text, not {len(texts)}", "give one --text")


def _print_results(results: list[Divergence]) -> None:
    emit_table(
        ("file", "text", "perplexity", "ln(ratio)", "mean KL", "99.9 %", "max", "RMS delta p", "same top"),
        [
            (
                str(result.file),
                str(result.text or ""),
                f"{numbers.perplexity.value:.4f} +/- {numbers.perplexity.standard_error:.4f}",
                "{:.5f} +/- {:.5f}".format(*numbers.ln_ratio),
                f"{numbers.kl.mean:.7f} +/- {numbers.kl.standard_error:.7f}",
                f"{numbers.kl.p99_9:.5f}",
                f"{numbers.kl.max:.5f}",
                "{:.3f} +/- {:.3f} %".format(*(100 * value for value in numbers.delta_p_rms)),
                f"{100 * numbers.same_top:.3f} +/- {100 * numbers.same_top_standard_error:.3f} %",
            )
            for result in results
            for numbers in (result.statistics,)
        ],
    )
