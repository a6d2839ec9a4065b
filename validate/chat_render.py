"""A child process that renders a chat template: JSON on stdin, JSON on stdout, bounded in time and memory.

A template comes with the checkpoint and is as trusted as any other stranger's program. The sandbox of Jinja keeps it
from Python's objects; only a process of its own keeps it from looping for ever or filling the memory.

Run as a script, by validate/chat.py, and apart from the package: it needs no more than jinja2.
"""

from __future__ import annotations

import datetime
import json
import resource
import sys
from typing import Any, NoReturn

from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 2
MEMORY_BYTES = 1 << 30
MAX_CHARACTERS = 1 << 24


def raise_exception(message: str) -> NoReturn:
    """How a template refuses a conversation."""
    raise TemplateError(message)


def strftime_now(layout: str) -> str:
    """Today, for templates that tell the model the date."""
    return datetime.datetime.now().strftime(layout)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes HTML, which no tokenizer wants."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(template: str, variables: dict[str, Any]) -> str:
    """Render with the settings and helpers of transformers' `apply_chat_template`."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    text = environment.from_string(template).render(**variables)
    if len(text) > MAX_CHARACTERS:
        raise TemplateError(f"it gives {len(text)} characters")
    return text


def answer(request: dict[str, Any]) -> dict[str, str]:
    """The text, or the reason why there is none."""
    try:
        return {"text": render(request["template"], request["variables"])}
    except Exception as error:  # whatever a template does wrong, Python may raise
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
