"""What a model writes after a prompt: greedy, so that two runs compare."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from convert.errors import FormatError, UsageError
from validate.chat import render_chat
from validate.flags import find_flags
from validate.runtime import MAX_BATCH, Context, Runtime

if TYPE_CHECKING:
    import numpy as np

TEMPLATE_KEY = "tokenizer.chat_template"

Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        template: whether the prompt went through the chat template.
        text: what was written, control tokens spelled out, without the token that ended it.
        tokens: how many tokens that is.
        tokens_per_second: speed of reading back one token and choosing the next, the prompt not counted; None where
            nothing was read back.
        finish_reason: `stop`: the model ended it; `length`: the limit did; `error`: the template failed, or the
            logits are not finite.
        flags: see `validate.flags`; and `template_error`, `not_finite`.
        error: what the template failed with, or None.
    """

    template: bool
    text: str
    tokens: int
    tokens_per_second: float | None
    finish_reason: Finish
    flags: list[str]
    error: str | None = None


def generate(runtime: Runtime, prompt: str, max_tokens: int) -> list[Generation]:
    """Answer a prompt through the chat template, where the file has one, and then without it.

    Without the template the prompt is the beginning of a text, in which control tokens may be spelled out.

    Raises:
        SourceError: llama.cpp cannot run the model.
        UsageError: the prompt has no tokens.
    """
    control_tokens = runtime.control_tokens()
    start = runtime.tokenize_prompt(prompt)
    if not len(start):
        raise UsageError("the prompt has no tokens", "give a --prompt with some text")
    plain = _answer(runtime, prompt, start, max_tokens, control_tokens, template=False)
    template = runtime.metadata(TEMPLATE_KEY)
    if template is None:
        return [plain]
    try:
        chat, start = _render(runtime, template, prompt)
    except FormatError as error:
        return [Generation(True, "", 0, None, "error", ["template_error"], error.what), plain]
    return [_answer(runtime, chat, start, max_tokens, control_tokens, template=True), plain]


def _render(runtime: Runtime, template: str, prompt: str) -> tuple[str, np.ndarray]:
    """The prompt under the template, and its tokens."""
    bos, eos = runtime.spelling(runtime.bos), runtime.spelling(runtime.eos)
    chat = render_chat(template, [{"role": "user", "content": prompt}], bos, eos)
    tokens = runtime.tokenize_prompt(chat)
    if not 0 < len(tokens) <= runtime.trained_context:
        raise FormatError(
            f"the chat template gives {len(tokens)} tokens, where the model has a context of {runtime.trained_context}",
            "use a shorter --prompt, or convert again with another template",
        )
    return chat, tokens


def _answer(
    runtime: Runtime,
    prompt: str,
    start: np.ndarray,
    max_tokens: int,
    control_tokens: Iterable[str],
    *,
    template: bool,
) -> Generation:
    with runtime.context(len(start) + max_tokens) as context:
        tokens, finish, seconds, steps = _greedy(runtime, context, start, max_tokens)
    text = runtime.text(tokens)
    flags = find_flags(prompt, text, tokens, control_tokens)
    return Generation(
        template=template,
        text=text,
        tokens=len(tokens),
        tokens_per_second=steps / seconds if steps else None,
        finish_reason=finish,
        flags=["not_finite", *flags] if finish == "error" else flags,
    )


def _greedy(
    runtime: Runtime, context: Context, prompt: np.ndarray, max_tokens: int
) -> tuple[list[int], Finish, float, int]:
    """The tokens, what ended them, and the seconds and number of single steps after the prompt."""
    import numpy as np

    for start in range(0, len(prompt), MAX_BATCH):
        logits = context.decode(prompt[None, start : start + MAX_BATCH], start, rows=1)
    tokens: list[int] = []
    began = time.perf_counter()
    steps = 0
    finish: Finish = "length"
    while True:
        token = int(logits[0, 0].argmax())
        # The largest is NaN where any is, and infinite where any is: nothing that follows would mean anything.
        if not np.isfinite(logits[0, 0, token]):
            finish = "error"
            break
        if runtime.ends(token):
            finish = "stop"
            break
        tokens.append(token)
        if len(tokens) == max_tokens:
            break
        logits = context.decode(np.array([[token]], np.int32), len(prompt) + steps, rows=1)
        steps += 1
    return tokens, finish, time.perf_counter() - began, steps
