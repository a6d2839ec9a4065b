"""What some models, and their reference, answer to some prompts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.cli.console import note
from mconv.inference.model import LanguageModel, common_vocabulary, open_model
from mconv.validate.findings import Finding
from mconv.validate.generation.generate import Generation, generate


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
        """What is wrong with it."""
        return self.made.findings(self.prompt)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        findings = [finding.to_json() for finding in self.findings]
        return {"file": str(self.file), "prompt": self.prompt, **self.made.to_json(), "findings": findings}


def answer_prompts(
    files: Sequence[Path],
    prompts: Sequence[str],
    max_tokens: int,
    *,
    samples: int = 0,
    reference: Path | None = None,
    hf_config: Path | None = None,
    threads: int | None = None,
) -> list[Answer]:
    """Let each model answer each prompt, see `generate`; one that has no room in memory is passed over with a note.

    Args:
        files: GGUF files and folders.
        reference: what to hold the greedy answers against.
        hf_config, threads: see `open_model`.

    Returns:
        The answers of each file in turn, then the greedy ones of the reference, unless it is one of the files.

    Raises:
        OSError, SourceError, FormatError, MappingError: a model cannot be opened or run.
        UsageError: a prompt has no tokens, or a file another vocabulary than the reference.
    """
    answers: list[Answer] = []
    expected: dict[str, list[Generation]] = {}
    with ExitStack() as stack:
        original = None
        if reference is not None:
            original = stack.enter_context(open_model(reference, threads, hf_config))
            if _can_write(original):
                expected = {prompt: generate(original, prompt, max_tokens) for prompt in prompts}
        for file in files:
            with open_model(file, threads, hf_config) as model:
                if original is not None:
                    common_vocabulary((original, model))
                if _can_write(model):
                    answers += [
                        Answer(file, prompt, made)
                        for prompt in prompts
                        for made in generate(
                            model,
                            prompt,
                            max_tokens,
                            samples=samples,
                            reference=original,
                            expected=expected.get(prompt, ()),
                        )
                    ]
    if reference is not None and reference not in files:
        answers += [Answer(reference, prompt, made) for prompt, written in expected.items() for made in written]
    return answers


def _can_write(model: LanguageModel) -> bool:
    if not model.in_memory:
        note(f"note: {model.path}: too large for the memory that is free, so it writes no answers")
    return model.in_memory
