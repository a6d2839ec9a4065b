"""Run every check of artifacts against one reference, and collect the results in the object of `mval report`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.documents import json_text
from mconv.convert.errors import UsageError
from mconv.convert.layouts.layout import ReadOptions
from mconv.quantize.imatrix import read_imatrix
from mconv.validate.findings import CHECKS
from mconv.validate.report.artifacts import describe_artifact
from mconv.validate.report.gates import DEFAULT_GATES, apply_gates, read_gates
from mconv.validate.subject import Subject, open_subjects

if TYPE_CHECKING:
    from mconv.validate.divergence.perplexity import PerplexityResult
    from mconv.validate.divergence.result import Divergence

_RUNNING = frozenset({"perplexity", "kl", "generate"})
"""The checks that run models."""

PROMPTS = ("What is the capital of France?", "Once upon a time")

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Request:
    """The input and options of a report.

    Attributes:
        artifacts: GGUF files, Hugging Face or Megatron folders.
        reference: what they were made from: any of these.
        texts: files in UTF-8 for perplexity and KL divergence.
        checks: some of `CHECKS`.
        reading: read options of layouts, see `Subject`.
        imatrix: the importance matrix that they were quantized with.
        ctx, chunks: tokens per chunk, and number of chunks per text; None for all.
        prompts, max_tokens, samples: the prompts, the maximum length, and the number of sampled answers in addition to
            the greedy ones.
        threads: number of threads; None uses every usable core.
    """

    artifacts: Sequence[Path]
    reference: Path
    texts: Sequence[Path] = ()
    checks: Sequence[str] = CHECKS
    reading: ReadOptions | None = None
    imatrix: Path | None = None
    ctx: int = 512
    chunks: int | None = None
    prompts: Sequence[str] = PROMPTS
    max_tokens: int = 64
    samples: int = 2
    threads: int | None = None


def make_report(request: Request, gates: Path | None = None) -> dict[str, Any]:
    """Run the checks and apply the gates.

    Args:
        gates: a gates file, see `mconv.validate.report.gates`. Default: the built-in gates.

    Returns:
        JSON-ready members, see docs/reference/json.md: `reference`, `artifacts`, `checks`, one member per check with
        its `results`, `gates`, `passed`. Numbers that JSON cannot represent are None.

    Raises:
        UsageError: a check needs a text and none is given, or the gates file is not valid.
        SourceError, FormatError, MappingError: an artifact or the reference cannot be read or run.
    """
    limits = read_gates(gates or DEFAULT_GATES)
    # Check each path once, even if it is given twice: results are identified by their paths.
    request = replace(
        request, artifacts=tuple(dict.fromkeys(request.artifacts)), texts=tuple(dict.fromkeys(request.texts))
    )
    if not request.texts and not {"perplexity", "kl"}.isdisjoint(request.checks):
        raise UsageError("no --text to measure the models on", "give one or more with --text, or --skip perplexity,kl")
    paths = (request.reference, *request.artifacts)
    with open_subjects(paths, reading=request.reading, threads=request.threads) as (reference, *artifacts):
        report = _run_checks(request, reference, artifacts)
    # Convert to JSON and back, so that the returned report is the same as the written one.
    report = json.loads(json_text(report))
    results = apply_gates(report, limits)
    report["gates"] = {"results": [asdict(gate) for gate in results]}
    report["passed"] = all(gate.status != "fail" for gate in results)
    return dict(json.loads(json_text(report)))


def _run_checks(request: Request, reference: Subject, artifacts: Sequence[Subject]) -> dict[str, Any]:
    """The report without gates. Each model is loaded once, and artifacts are unloaded once they have answered."""
    report: dict[str, Any] = {
        "reference": str(request.reference),
        "artifacts": [asdict(describe_artifact(artifact)) for artifact in artifacts],
        "checks": [name for name in CHECKS if name in request.checks],
        **{name: {"results": []} for name in CHECKS},
    }
    if not _RUNNING.isdisjoint(request.checks):
        for subject in (reference, *artifacts):
            subject.check_runnable()
    if "weights" in request.checks:
        report["weights"]["results"] = _weights(request, reference, artifacts)
    if "tokens" in request.checks:
        report["tokens"]["results"] = _tokens(request, reference, artifacts)
    if "template" in request.checks:
        report["template"]["results"] = _template(reference, artifacts)
    if not {"perplexity", "kl"}.isdisjoint(request.checks):
        report["kl"]["results"], report["perplexity"]["results"] = _divergence(request, reference, artifacts)
    if "generate" in request.checks:
        report["generate"]["results"] = _generate(request, reference, artifacts)
    return report


def _weights(request: Request, reference: Subject, artifacts: Sequence[Subject]) -> Rows:
    from mconv.validate.weights.compare import compare_weights

    matrix = read_imatrix(request.imatrix) if request.imatrix else None
    compared = (compare_weights(artifact, reference, matrix=matrix, threads=request.threads) for artifact in artifacts)
    return [result.to_json() for result in compared]


def _tokens(request: Request, reference: Subject, artifacts: Sequence[Subject]) -> Rows:
    from mconv.validate.tokens.compare import compare_tokenizers, text_group

    groups = [text_group(path) for path in request.texts]
    compared = (compare_tokenizers(artifact.tokenizer, reference.tokenizer, groups) for artifact in artifacts)
    return [result.to_json() for result in compared]


def _template(reference: Subject, artifacts: Sequence[Subject]) -> Rows:
    from mconv.validate.template.compare import compare_conversations

    compared = (compare_conversations(artifact.tokenizer, reference.tokenizer) for artifact in artifacts)
    return [result.to_json() for result in compared]


def _divergence(request: Request, reference: Subject, artifacts: Sequence[Subject]) -> tuple[Rows, Rows]:
    """KL divergence and perplexity from one pass over each text, including the perplexity of the reference."""
    from mconv.validate.divergence.lockstep import measure_divergence

    base, *models = [subject.model() for subject in (reference, *artifacts)]
    measured = measure_divergence(base, models, request.texts, length=request.ctx, limit=request.chunks)
    return [result.to_json() for result in measured], [result.to_json() for result in _perplexities(measured)]


def _perplexities(measured: Sequence[Divergence]) -> Iterable[PerplexityResult]:
    """The results of `mval perplexity`, the reference first."""
    from mconv.validate.divergence.perplexity import PerplexityResult

    texts = {one.text: one for one in measured if one.text}  # the reference's pass is the same for all artifacts
    for text, one in texts.items():
        numbers = one.statistics.reference_perplexity
        yield PerplexityResult(one.reference, text, numbers, one.chunks, one.reference_seconds)
    for one in measured:
        if one.text:
            yield PerplexityResult(one.file, one.text, one.statistics.perplexity, one.chunks, one.seconds)


def _generate(request: Request, reference: Subject, artifacts: Sequence[Subject]) -> Rows:
    from mconv.validate.generation.answers import answer_prompts

    answers = answer_prompts(
        artifacts, request.prompts, request.max_tokens, samples=request.samples, reference=reference
    )
    return [answer.to_json() for answer in answers]
