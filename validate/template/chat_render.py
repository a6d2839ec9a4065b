"""A child process that renders a chat template: JSON on stdin, a line of JSON for each conversation on stdout.

Time is limited for each conversation, and the process ends at one that takes longer. Memory is limited too.

A template comes with the checkpoint and is untrusted. The sandbox of Jinja blocks access to Python's objects; only a
separate process can stop it from looping forever or filling the memory.

validate/template/chat.py runs this file as a script, without importing the package: it needs only jinja2.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 2
MEMORY_BYTES = 1 << 30
MAX_CHARACTERS = 1 << 22


def raise_exception(message: str) -> NoReturn:
    """Called by a template to reject a conversation."""
    raise TemplateError(message)


def clock(now: str | None) -> Callable[[str], str]:
    """The date, for templates that insert it: today, or the given one in ISO format."""

    def strftime_now(layout: str) -> str:
        moment = datetime.datetime.now() if now is None else datetime.datetime.fromisoformat(now)
        return moment.strftime(layout)

    return strftime_now


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter escapes HTML, which would change the tokens."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Generation(Extension):
    """`{% generation %}` marks the model's text for training; it does not change the output."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the marks."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.cache
def compile_template(template: str, now: str | None) -> Template:
    """Compile with the settings and helpers of transformers' `apply_chat_template`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = clock(now)
    return environment.from_string(template)


def answer(template: str, now: str | None, variables: dict[str, Any]) -> dict[str, Any]:
    """The text, or an error and whether the template raised it to reject the conversation."""
    try:
        text = compile_template(template, now).render(**variables)
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"it gives {len(text)} characters")
    except Exception as error:  # a faulty template can raise any exception
        return {"error": f"{type(error).__name__}: {error}", "refused": type(error) is TemplateError}
    return {"text": text}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    request = json.load(sys.stdin)
    for conversation in request["conversations"]:
        seconds = math.ceil(time.process_time()) + CPU_SECONDS
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(
            resource.RLIMIT_CPU, (seconds if hard == resource.RLIM_INFINITY else min(seconds, hard), hard)
        )
        print(json.dumps(answer(request["template"], request["now"], conversation)), flush=True)  # noqa: T201
