"""The prompt that a conversation becomes under a chat template."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from convert.errors import FormatError

RENDERER = (sys.executable, "-I", str(Path(__file__).with_name("chat_render.py")))
WALL_SECONDS = 60


def render_chat(template: str, messages: list[dict[str, Any]], bos: str, eos: str) -> str:
    """Render a conversation, up to where the model's answer begins.

    Args:
        template: Jinja source, as the GGUF key `tokenizer.chat_template` has it.
        messages: `{"role": ..., "content": ...}` in order.
        bos: spelling of the beginning-of-sequence token.
        eos: spelling of the end-of-sequence token.

    Raises:
        FormatError: the template is not Jinja, fails, refuses the conversation, or takes too long.
    """
    if "{" not in template:
        raise _failure(f"it is the text {template[:40]!r}, not Jinja")
    variables = {"messages": messages, "bos_token": bos, "eos_token": eos, "add_generation_prompt": True}
    request = json.dumps({"template": template, "variables": variables})
    try:
        child = subprocess.run(RENDERER, input=request, capture_output=True, text=True, timeout=WALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise _failure("it does not end") from error
    if child.returncode:
        raise _failure("it takes too much time or memory")
    answer = json.loads(child.stdout)
    if "error" in answer:
        raise _failure(answer["error"])
    return answer["text"]


def _failure(reason: str) -> FormatError:
    return FormatError(f"the chat template fails: {reason}", "convert again with a template that renders")
