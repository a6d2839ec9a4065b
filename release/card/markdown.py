"""Escape untrusted texts for Markdown, so that they are shown exactly as written."""

from __future__ import annotations

import re

# Everything that starts markup in CommonMark or its tables, in any position; an underscore only outside words.
_SPECIAL = re.compile(r"([\\`*{}\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")
# Texts that the renderers of GitHub and the Hub turn into links automatically.
_LINKS = re.compile(r"(?i)(?<=:)//|(?<=\bwww)\.|@")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_RUN = re.compile(r"`+")


class Markdown(str):
    """A text that is already Markdown and is inserted into a page unchanged."""


def escape(text: object) -> Markdown:
    """A value as plain text on one line."""
    if isinstance(text, Markdown):
        return text
    line = " ".join(visible(str(text)).split())
    escaped = _SPECIAL.sub(r"\\\1", re.sub("[&<>]", lambda found: _ENTITIES[found[0]], line))
    return Markdown(_LINKS.sub(lambda found: "".join(f"\\{sign}" for sign in found[0]), escaped))


def code_span(text: object) -> Markdown:
    """Any text as inline code, also within a table."""
    content = " ".join(visible(str(text)).split()).replace("|", "\\|")
    ticks = "`" * (_longest_run(content) + 1)
    # A space at each end separates backticks in the text from the delimiters, and is not shown.
    space = " " if content[:1] == "`" or content[-1:] == "`" else ""
    return Markdown(f"{ticks}{space}{content}{space}{ticks}")


def link(text: object, address: str | None) -> Markdown:
    """A text linked to a web address; both as plain text if the address is not safe to link."""
    if address is None:
        return escape(text)
    if not re.fullmatch(r"https?://[\w.~/?#%&=+:-]+", address, re.ASCII):
        return Markdown(f"{escape(text)} ({escape(address)})")
    return Markdown(f"[{escape(text)}]({address})")


def code_block(text: object, language: str = "") -> Markdown:
    """Any text as a code block."""
    content = "\n".join(visible(line) for line in str(text).split("\n"))
    fence = "`" * max(3, _longest_run(content) + 1)
    return Markdown(f"{fence}{language}\n{content}\n{fence}")


def visible(text: str) -> str:
    """A text in which invisible characters, cursor movements and changes of direction are spelled out."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def _longest_run(text: str) -> int:
    return max(map(len, _RUN.findall(text)), default=0)
