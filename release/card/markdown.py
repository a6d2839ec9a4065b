"""Texts that nobody vouches for, made safe in Markdown: what they look like is what they say."""

from __future__ import annotations

import re

# Everything that starts something in CommonMark or its tables, wherever it stands; an underscore not within a word.
_SPECIAL = re.compile(r"([\\`*{}\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")
# What GitHub's and the Hub's renderers turn into links unasked.
_LINKS = re.compile(r"(?i)(?<=:)//|(?<=\bwww)\.|@")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_RUN = re.compile(r"`+")


class Markdown(str):
    """A text that is Markdown already, and goes into a page as it is."""


def escape(text: object) -> Markdown:
    """A value as a run of plain text in one line."""
    if isinstance(text, Markdown):
        return text
    line = " ".join(visible(str(text)).split())
    escaped = _SPECIAL.sub(r"\\\1", re.sub("[&<>]", lambda found: _ENTITIES[found[0]], line))
    return Markdown(_LINKS.sub(lambda found: "".join(f"\\{sign}" for sign in found[0]), escaped))


def code_span(text: object) -> Markdown:
    """A text as code within a line, of a table too, whatever is in it."""
    content = " ".join(visible(str(text)).split()).replace("|", "\\|")
    ticks = "`" * (_longest_run(content) + 1)
    # A space at each end keeps the text's own ticks apart, and is not shown.
    space = " " if content[:1] == "`" or content[-1:] == "`" else ""
    return Markdown(f"{ticks}{space}{content}{space}{ticks}")


def link(text: object, address: str | None) -> Markdown:
    """A text that leads to an address of the web; both as plain text where the address is not one to follow."""
    if address is None:
        return escape(text)
    if not re.fullmatch(r"https?://[\w.~/?#%&=+:-]+", address, re.ASCII):
        return Markdown(f"{escape(text)} ({escape(address)})")
    return Markdown(f"[{escape(text)}]({address})")


def code_block(text: object, language: str = "") -> Markdown:
    """A text as a block of code, whatever is in it."""
    content = "\n".join(visible(line) for line in str(text).split("\n"))
    fence = "`" * max(3, _longest_run(content) + 1)
    return Markdown(f"{fence}{language}\n{content}\n{fence}")


def visible(text: str) -> str:
    """A text with whatever shows as nothing, moves the cursor or turns the direction spelled out."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def _longest_run(text: str) -> int:
    return max(map(len, _RUN.findall(text)), default=0)
