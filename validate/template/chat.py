"""Render conversations with a chat template."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.errors import FormatError

RENDERER = (sys.executable, "-I", str(Path(__file__).with_name("chat_render.py")))
WALL_SECONDS = 60


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: the prompt; None if rendering failed.
        error: why rendering failed.
        refused: whether the template itself rejects the conversation; any other error is a fault of the template.
    """

    text: str | None = None
    error: str = ""
    refused: bool = False


def render_chat(template: str, messages: list[dict[str, Any]], bos: str, eos: str) -> str:
    """Render a conversation, up to the start of the model's answer.

    Args:
        template: Jinja source, as in the GGUF key `tokenizer.chat_template`.
        messages: `{"role": ..., "content": ...}` in order.
        bos: spelling of the beginning-of-sequence token.
        eos: spelling of the end-of-sequence token.

    Raises:
        FormatError: the template is not Jinja, fails, rejects the conversation, or takes too long.
    """
    variables = {"messages": messages, "bos_token": bos, "eos_token": eos, "add_generation_prompt": True}
    (rendered,) = render_conversations(template, [variables])
    if rendered.text is None:
        raise FormatError(f"the chat template fails: {rendered.error}", "convert again with a template that renders")
    return rendered.text


def render_conversations(
    template: str, conversations: Sequence[Mapping[str, Any]], now: str | None = None
) -> list[Rendered]:
    """Render each conversation.

    If one takes too long, those after it are not rendered.

    Args:
        template: Jinja source.
        conversations: the template variables of each conversation.
        now: the date that the template gets, in ISO format. Default: the current date.
    """
    if not is_jinja(template):
        return [Rendered(error=f"it is the text {template[:40]!r}, not Jinja")] * len(conversations)
    request = json.dumps({"template": template, "conversations": [*conversations], "now": now})
    try:
        child = subprocess.run(RENDERER, input=request, capture_output=True, text=True, timeout=WALL_SECONDS)
        output, reason = child.stdout, "it takes too much time or memory"
    except subprocess.TimeoutExpired as error:
        output, reason = (error.stdout or b"").decode("utf-8"), "it does not end"
    # A truncated line has no line end.
    rendered = [Rendered(**json.loads(line)) for line in output.splitlines(keepends=True) if line.endswith("\n")]
    if len(rendered) < len(conversations):
        rendered.append(Rendered(error=reason))
    untried = len(conversations) - len(rendered)
    return rendered + [Rendered(error=f"{reason} with the conversation before")] * untried


def is_jinja(template: str) -> bool:
    """Whether it can be a template, rather than the name of a built-in template of some program."""
    return "{" in template
