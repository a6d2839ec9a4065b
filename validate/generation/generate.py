"""Generate answers to a prompt: greedy ones, which can be compared, and ones sampled with the recommended settings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mconv.convert.errors import FormatError, UsageError
from mconv.validate.findings import Finding, Severity
from mconv.validate.generation.flags import find_flags
from mconv.validate.generation.sampling import Choose, SamplingSettings, likeliest, recommended, sampler
from mconv.validate.template.chat import render_chat

if TYPE_CHECKING:
    import numpy as np

    from mconv.inference.language_model import LanguageModel, ReadOn

Finish = Literal["stop", "length", "error"]

# A looping answer is only a warning: a small or greedy model can loop without being damaged.
_SEVERITIES: dict[str, Severity] = {"not_finite": "fail", "template_error": "fail"}
_FAULTS = {
    "empty": "an empty answer",
    "unfinished_think": "[THINK] without [/THINK]",
    "loop": "an answer that ends in a loop",
    "control_tokens": "control tokens in the answer",
    "not_finite": "logits that are not finite",
    "template_error": "the chat template fails",
}


@dataclass(frozen=True)
class Agreement:
    """How far a reference, with greedy choices, generates the same tokens.

    Attributes:
        reference: its path.
        common_prefix: number of tokens before the first difference.
        tokens: number of tokens of the answer, including its end if the model ended it.
        flags: the flags of the reference's own answer to the prompt; None if it has no answer.
    """

    reference: str
    common_prefix: int
    tokens: int
    flags: list[str] | None = None


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        template: whether the chat template was applied to the prompt.
        text: the generated text, with control tokens spelled out, without the token that ended it.
        tokens: number of tokens in the text.
        tokens_per_second: speed of reading one token and choosing the next, without the prompt; None if no token was
            read.
        finish_reason: `stop`: the model ended it; `length`: the limit was reached; `error`: the template failed, or
            the logits are not finite.
        flags: see `mconv.validate.generation.flags`; and `template_error`, `not_finite`.
        error: the error of the template, or None.
        seconds_to_first_token: time to read the prompt and choose the first token; None if there was no prompt.
        sampling: the settings of sampling; None for a greedy answer.
        seed: the seed of sampling.
        agreement: the agreement of a greedy answer with the reference, if there is one.
    """

    template: bool
    text: str
    tokens: int
    tokens_per_second: float | None
    finish_reason: Finish
    flags: list[str]
    error: str | None = None
    seconds_to_first_token: float | None = None
    sampling: SamplingSettings | None = None
    seed: int | None = None
    agreement: Agreement | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        return {**asdict(self), "sampling": self.sampling.to_json() if self.sampling else None}

    def findings(self, prompt: str) -> list[Finding]:
        """One finding per flag; only a note if the reference's own answer has the flag too."""
        return [self._finding(flag, prompt) for flag in self.flags]

    def _finding(self, flag: str, prompt: str) -> Finding:
        way = "through the chat template" if self.template else "without the chat template"
        fault = self.error if flag == "template_error" and self.error else _FAULTS[flag]
        how = f", drawn with seed {self.seed}" if self.sampling else ""
        severity = _SEVERITIES.get(flag, "warn")
        if severity == "warn" and self.agreement and flag in (self.agreement.flags or ()):
            severity, how = "note", ", as in that of the reference"
        return Finding("generate", flag, prompt, f"{prompt!r}, {way}: {fault}{how}", severity)


@dataclass(frozen=True)
class _Prompt:
    """The text that the model reads, with control tokens spelled out, and its tokens."""

    text: str
    tokens: np.ndarray
    template: bool


def generate(
    model: LanguageModel,
    prompt: str,
    max_tokens: int,
    *,
    samples: int = 0,
    reference: LanguageModel | None = None,
    expected: Sequence[Generation] = (),
) -> list[Generation]:
    """Answer a prompt with the chat template, if the model has one, and then without it.

    Without the template, the prompt is the beginning of a text, which may contain control tokens.

    Args:
        samples: how many answers to sample in addition, with the template if there is one, with the model's recommended
            settings; none if it has no recommended settings.
        reference: a model with the same vocabulary to compare the greedy answers with.
        expected: the reference's own answers, if any.

    Raises:
        SourceError: the model cannot be run.
        UsageError: the prompt has no tokens.
    """
    vocabulary = model.vocabulary
    plain = _Prompt(prompt, vocabulary.tokenize_prompt(prompt), template=False)
    if not len(plain.tokens):
        raise UsageError("the prompt has no tokens", "give a --prompt with some text")
    answers = []
    prompts = [plain]
    template = vocabulary.chat_template
    if template is not None:
        try:
            prompts.insert(0, _render(model, template, prompt))
        except FormatError as error:
            answers.append(Generation(True, "", 0, None, "error", ["template_error"], error.what))
    marks = vocabulary.control_tokens()
    for asked in prompts:
        made, tokens = _answer(model, asked, max_tokens, marks)
        if reference is not None:
            of_reference = next((each.flags for each in expected if each.template == asked.template), None)
            made = replace(made, agreement=_agree(reference, asked.tokens, tokens, of_reference))
        answers.append(made)
    settings = recommended(model.provenance) if samples else None
    if settings is not None:
        answers += [_answer(model, prompts[0], max_tokens, marks, settings, seed)[0] for seed in range(samples)]
    return answers


def _render(model: LanguageModel, template: str, prompt: str) -> _Prompt:
    """Apply the template to the prompt."""
    vocabulary = model.vocabulary
    bos, eos = vocabulary.spelling(vocabulary.bos), vocabulary.spelling(vocabulary.eos)
    chat = render_chat(template, [{"role": "user", "content": prompt}], bos, eos)
    tokens = vocabulary.tokenize_prompt(chat)
    if not 0 < len(tokens) <= model.trained_context:
        raise FormatError(
            f"the chat template gives {len(tokens)} tokens, but the context of the model is {model.trained_context}",
            "use a shorter --prompt, or convert again with another template",
        )
    return _Prompt(chat, tokens, template=True)


def _answer(
    model: LanguageModel,
    prompt: _Prompt,
    max_tokens: int,
    control_tokens: Sequence[str],
    settings: SamplingSettings | None = None,
    seed: int | None = None,
) -> tuple[Generation, list[int]]:
    """An answer, and its tokens including the one that ended it."""
    choose = sampler(settings, seed or 0) if settings else likeliest
    with model.reader(len(prompt.tokens) + max_tokens) as read_on:
        written = _write(model, read_on, prompt.tokens, max_tokens, choose)
    text = model.vocabulary.text(written.tokens)
    flags = find_flags(prompt.text, text, written.tokens, control_tokens)
    made = Generation(
        template=prompt.template,
        text=text,
        tokens=len(written.tokens),
        tokens_per_second=written.steps / written.seconds if written.steps else None,
        finish_reason=written.finish,
        flags=["not_finite", *flags] if written.finish == "error" else flags,
        seconds_to_first_token=written.seconds_to_first,
        sampling=settings,
        seed=seed,
    )
    return made, [*written.tokens, *([] if written.end is None else [written.end])]


@dataclass(frozen=True)
class _Written:
    """The tokens of an answer, how it ended, and the time that it took.

    Attributes:
        end: the token that ended it, which is not among its tokens; None if the limit was reached.
        seconds_to_first: time from the prompt to the first token.
        seconds, steps: time for, and number of, single tokens read.
    """

    tokens: list[int]
    end: int | None
    finish: Finish
    seconds_to_first: float
    seconds: float
    steps: int


def _write(model: LanguageModel, read_on: ReadOn, prompt: np.ndarray, max_tokens: int, choose: Choose) -> _Written:
    import numpy as np

    began = time.perf_counter()
    logits = read_on(prompt)
    token = choose(logits)
    first = time.perf_counter()
    tokens: list[int] = []
    end: int | None = None
    finish: Finish = "length"
    while True:
        # If any logit is NaN or infinite, so is the largest: the answer would be meaningless from here on.
        if not np.isfinite(logits[logits.argmax()]):
            finish = "error"
            break
        if model.vocabulary.ends(token):
            end, finish = token, "stop"
            break
        tokens.append(token)
        if len(tokens) == max_tokens:
            break
        logits = read_on(np.array([token], np.int32))
        token = choose(logits)
    steps = len(tokens) - (finish == "length")
    return _Written(tokens, end, finish, first - began, time.perf_counter() - first, steps)


def _agree(reference: LanguageModel, prompt: np.ndarray, tokens: list[int], flags: list[str] | None) -> Agreement:
    """Compare a greedy answer with the most likely token of the reference after each of its tokens.

    Up to the first difference, this is what the reference itself would generate, so one pass over the answer is enough.
    """
    import numpy as np

    answer = np.array(tokens, np.int32)
    if not len(answer):
        return Agreement(str(reference.path), 0, 0, flags)
    # A padding token of the model may be outside the vocabulary of the reference, which cannot read it.
    beyond = np.flatnonzero(answer >= reference.vocab_size)
    compared = answer[: beyond[0] + 1] if len(beyond) else answer
    read = np.concatenate([prompt, compared[:-1]]).astype(np.int32)
    same = reference.likeliest(read, len(prompt) - 1) == compared
    common = len(answer) if same.all() else int(same.argmin())
    return Agreement(str(reference.path), common, len(answer), flags)
