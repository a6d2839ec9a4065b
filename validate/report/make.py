"""Every check of some artifacts against one reference, gathered in one value: the object that `mval report` prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.cli.console import json_text
from mconv.convert.errors import UsageError
from mconv.convert.layouts import open_checkpoint, options_for
from mconv.quantize.imatrix import read_imatrix
from mconv.validate.findings import CHECKS
from mconv.validate.report.artifacts import describe_artifact
from mconv.validate.report.gates import DEFAULT_GATES, apply_gates, read_gates

if TYPE_CHECKING:
    from mconv.validate.divergence.perplexity import PerplexityResult
    from mconv.validate.divergence.result import Divergence

PROMPTS = ("What is the capital of France?", "Once upon a time")

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Request:
    """What to check, and with what.

    Attributes:
        artifacts: GGUF files, Hugging Face or Megatron folders.
        reference: what they were made from: any of these.
        texts: files in UTF-8 for perplexity and KL divergence.
        checks: some of `CHECKS`.
        hf_config: see `open_megatron`; for whichever of them is a Megatron folder.
        imatrix: the importance matrix that they were quantized with.
        ctx, chunks: tokens in a chunk of text, and how many chunks of each text; None for all.
        prompts, max_tokens, samples: what is answered, how long, and how many drawn answers besides the greedy ones.
        threads: threads to work with; None takes every usable core.
    """

    artifacts: Sequence[Path]
    reference: Path
    texts: Sequence[Path] = ()
    checks: Sequence[str] = CHECKS
    hf_config: Path | None = None
    imatrix: Path | None = None
    ctx: int = 512
    chunks: int | None = None
    prompts: Sequence[str] = PROMPTS
    max_tokens: int = 64
    samples: int = 2
    threads: int | None = None


def make_report(request: Request, gates: Path | None = None) -> dict[str, Any]:
    """Run the checks and hold what they found to the limits.

    Args:
        gates: a file of limits, see `mconv.validate.report.gates`; the defaults where it is None.

    Returns:
        JSON-ready members, see docs/mval.md: `reference`, `artifacts`, `checks`, one member a check with its `results`,
        `gates`, `passed`. Numbers that JSON lacks are None.

    Raises:
        UsageError: no text for a check that needs one, or a file of limits that is none.
        SourceError, FormatError, MappingError: something cannot be read or run.
    """
    limits = read_gates(gates or DEFAULT_GATES)
    # What is named twice is looked at once: results are told apart by their paths.
    request = replace(
        request, artifacts=tuple(dict.fromkeys(request.artifacts)), texts=tuple(dict.fromkeys(request.texts))
    )
    if not request.texts and not {"perplexity", "kl"}.isdisjoint(request.checks):
        raise UsageError("no --text to measure the models on", "give one or more with --text, or --skip perplexity,kl")
    report: dict[str, Any] = {
        "reference": str(request.reference),
        "artifacts": [asdict(describe_artifact(path, request.hf_config)) for path in request.artifacts],
        "checks": [name for name in CHECKS if name in request.checks],
        **{name: {"results": []} for name in CHECKS},
    }
    if "weights" in request.checks:
        report["weights"]["results"] = _weights(request)
    if "tokens" in request.checks:
        report["tokens"]["results"] = _tokens(request)
    if "template" in request.checks:
        report["template"]["results"] = _template(request)
    if not {"perplexity", "kl"}.isdisjoint(request.checks):
        report["kl"]["results"], report["perplexity"]["results"] = _divergence(request)
    if "generate" in request.checks:
        report["generate"]["results"] = _generate(request)
    # Through JSON and back: what was measured is what is written, limits and all.
    report = json.loads(json_text(report))
    results = apply_gates(report, limits)
    report["gates"] = {"results": [asdict(gate) for gate in results]}
    report["passed"] = all(gate.status != "fail" for gate in results)
    return dict(json.loads(json_text(report)))


def _weights(request: Request) -> Rows:
    from mconv.validate.weights.compare import compare_weights

    reference = open_checkpoint(request.reference, **options_for(request.reference, hf_config=request.hf_config))
    matrix = read_imatrix(request.imatrix) if request.imatrix else None
    compared = (
        compare_weights(path, reference, hf_config=request.hf_config, matrix=matrix, threads=request.threads)
        for path in request.artifacts
    )
    return [result.to_json() for result in compared]


def _tokens(request: Request) -> Rows:
    from mconv.validate.tokens.compare import compare_tokenizers, text_group
    from mconv.validate.tokens.sources import open_sources

    groups = [text_group(path) for path in request.texts]
    *sources, reference = open_sources((*request.artifacts, request.reference), request.hf_config)
    return [compare_tokenizers(source, reference, groups).to_json() for source in sources]


def _template(request: Request) -> Rows:
    from mconv.validate.template.compare import compare_conversations
    from mconv.validate.tokens.sources import open_sources

    *sources, reference = open_sources((*request.artifacts, request.reference), request.hf_config)
    return [compare_conversations(source, reference).to_json() for source in sources]


def _divergence(request: Request) -> tuple[Rows, Rows]:
    """KL divergence and perplexity, both of one pass over each text; the reference's perplexity too."""
    from mconv.inference.model import check_models, open_model
    from mconv.validate.divergence.lockstep import measure_divergence

    check_models((request.reference, *request.artifacts), request.hf_config)
    with ExitStack() as stack:
        reference, *artifacts = (
            stack.enter_context(open_model(path, request.threads, request.hf_config))
            for path in (request.reference, *request.artifacts)
        )
        measured = measure_divergence(reference, artifacts, request.texts, length=request.ctx, limit=request.chunks)
    return [result.to_json() for result in measured], [result.to_json() for result in _perplexities(measured)]


def _perplexities(measured: Sequence[Divergence]) -> Iterable[PerplexityResult]:
    """What `mval perplexity` says, of the reference first."""
    from mconv.validate.divergence.perplexity import PerplexityResult

    texts = {one.text: one for one in measured if one.text}  # the reference's pass is the same for all artifacts
    for text, one in texts.items():
        numbers = one.statistics.reference_perplexity
        yield PerplexityResult(one.reference, text, numbers, one.chunks, one.reference_seconds)
    for one in measured:
        if one.text:
            yield PerplexityResult(one.file, one.text, one.statistics.perplexity, one.chunks, one.seconds)


def _generate(request: Request) -> Rows:
    from mconv.validate.generation.answers import answer_prompts

    answers = answer_prompts(
        request.artifacts,
        request.prompts,
        request.max_tokens,
        samples=request.samples,
        reference=request.reference,
        hf_config=request.hf_config,
        threads=request.threads,
    )
    return [answer.to_json() for answer in answers]
