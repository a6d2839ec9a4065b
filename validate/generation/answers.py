"""Answers of artifacts and their reference to prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.reporting import note
from mconv.inference.language_model import LanguageModel, common_vocabulary
from mconv.validate.findings import Finding
from mconv.validate.generation.generate import Generation, generate
from mconv.validate.subject import Subject


@dataclass(frozen=True)
class Answer:
    """One model's answer to one prompt.

    Attributes:
        file: the model, path as given.
    """

    file: Path
    prompt: str
    made: Generation

    @property
    def findings(self) -> list[Finding]:
        """Its faults."""
        return self.made.findings(self.prompt)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        findings = [finding.to_json() for finding in self.findings]
        return {"file": str(self.file), "prompt": self.prompt, **self.made.to_json(), "findings": findings}


def answer_prompts(
    artifacts: Sequence[Subject],
    prompts: Sequence[str],
    max_tokens: int,
    *,
    samples: int = 0,
    reference: Subject | None = None,
) -> list[Answer]:
    """Let each model answer each prompt; see `generate`. Skips, with a note, models too large for the free memory.

    At most the reference and one artifact are loaded at the same time; each artifact is unloaded once it has
    answered.

    Args:
        artifacts: the models that answer.
        reference: the model to compare the greedy answers with.

    Returns:
        The answers of each artifact in turn, then the greedy ones of the reference, unless it is one of the artifacts.

    Raises:
        OSError, SourceError, FormatError, MappingError: a model cannot be opened or run.
        UsageError: a prompt has no tokens, or the vocabularies of an artifact and the reference differ.
    """
    original = reference.model() if reference is not None else None
    expected: dict[str, list[Generation]] = {}
    if original is not None and _can_write(original):
        expected = {prompt: generate(original, prompt, max_tokens) for prompt in prompts}
    answers: list[Answer] = []
    for artifact in artifacts:
        answers += _answers(artifact.model(), prompts, max_tokens, samples, original, expected)
        if artifact is not reference:
            artifact.unload()
    if reference is not None and reference not in artifacts:
        answers += [Answer(reference.path, prompt, made) for prompt, written in expected.items() for made in written]
    return answers


def _answers(
    model: LanguageModel,
    prompts: Sequence[str],
    max_tokens: int,
    samples: int,
    reference: LanguageModel | None,
    expected: Mapping[str, Sequence[Generation]],
) -> list[Answer]:
    """The answers of one model; empty if it does not fit into memory."""
    if reference is not None:
        common_vocabulary((reference, model))
    if not _can_write(model):
        return []
    return [
        Answer(model.path, prompt, made)
        for prompt in prompts
        for made in generate(
            model, prompt, max_tokens, samples=samples, reference=reference, expected=expected.get(prompt, ())
        )
    ]


def _can_write(model: LanguageModel) -> bool:
    if not model.in_memory:
        note(f"{model.path}: skipped answers, since the model is too large for the free memory")
    return model.in_memory
