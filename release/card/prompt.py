"""The prompt format of a model: a conversation rendered with its chat template."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from mconv.release.inputs import ReleaseInputs
from mconv.validate.template.chat import render_conversations

_KEY = "tokenizer.chat_template"
# A template may insert the date, but a card must not change from day to day.
_DAY = "2025-01-01"
_SYSTEM = {"role": "system", "content": "{system prompt}"}
_TALK = [
    {"role": "user", "content": "{first question}"},
    {"role": "assistant", "content": "{first answer}"},
    {"role": "user", "content": "{second question}"},
]
_LONGEST = 4000


@dataclass(frozen=True)
class PromptFormat:
    """How a conversation is formatted for the model.

    Attributes:
        text: a conversation of a system prompt, two questions and an answer; None if the template cannot render it.
        takes_system: whether the template accepts a system prompt.
        error: why there is no text.
        sha256: hash of the template.
    """

    text: str | None
    takes_system: bool
    error: str
    sha256: str


def prompt_format(inputs: ReleaseInputs) -> PromptFormat | None:
    """The format; None for a model without a chat template. The template runs in its sandbox."""
    template = inputs.text(_KEY)
    if template is None:
        return None
    variables: dict[str, Any] = {
        "bos_token": _spelling(inputs, "bos"),
        "eos_token": _spelling(inputs, "eos"),
        "add_generation_prompt": True,
    }
    conversations = [{"messages": [_SYSTEM, *_TALK], **variables}, {"messages": _TALK, **variables}]
    with_system, without = render_conversations(template, conversations, _DAY)
    rendered = with_system if with_system.text is not None else without
    text = rendered.text
    if text is not None and len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}\n[{len(text) - _LONGEST} more characters]"
    digest = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
    return PromptFormat(text, with_system.text is not None, rendered.error, digest)


def _spelling(inputs: ReleaseInputs, role: str) -> str:
    number, tokens = inputs.metadata(f"tokenizer.ggml.{role}_token_id"), inputs.metadata("tokenizer.ggml.tokens")
    if not isinstance(number, int) or not isinstance(tokens, list) or not 0 <= number < len(tokens):
        return ""
    token = tokens[number]
    return token if isinstance(token, str) else ""
