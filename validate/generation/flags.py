"""Faults of a generated text that are visible without knowing what it should say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# A tail is a loop if a piece of any length repeats this often and fills this many tokens. Smaller limits would also
# match a row of a table or a refrain.
LOOP_REPEATS = 4
LOOP_TOKENS = 24

THINK, END_THINK = "[THINK]", "[/THINK]"


def find_flags(prompt: str, text: str, tokens: Sequence[int], control_tokens: Iterable[str]) -> list[str]:
    """The flags of one generation.

    Args:
        prompt: the prompt, with control tokens spelled out; it may already contain an opening `[THINK]`.
        text: the generated text, with control tokens spelled out, without the token that ended it.
        tokens: the ids of that text.
        control_tokens: the spelling of the control tokens in the vocabulary.
    """
    flags = []
    if not text.strip():
        flags.append("empty")
    if (prompt + text).rfind(THINK) > (prompt + text).rfind(END_THINK):
        flags.append("unfinished_think")
    if loop_period(tokens):
        flags.append("loop")
    # The marks of reasoning are control tokens too, but are allowed in an answer.
    if any(mark in text for mark in control_tokens if mark not in ("", THINK, END_THINK)):
        flags.append("control_tokens")
    return flags


def loop_period(tokens: Sequence[int]) -> int:
    """The length in tokens of the piece that the tail repeats; 0 if the tail is not a loop."""
    backwards = list(reversed(tokens))
    for period, matched in enumerate(_common_prefixes(backwards)):
        if period and matched + period >= max(LOOP_TOKENS, LOOP_REPEATS * period):
            return period
    return 0


def _common_prefixes(items: Sequence[int]) -> list[int]:
    """For each start, how many items from there on equal the beginning (the Z function, in linear time)."""
    lengths = [0] * len(items)
    left = right = 0
    for start in range(1, len(items)):
        length = min(right - start, lengths[start - left]) if start < right else 0
        while start + length < len(items) and items[length] == items[start + length]:
            length += 1
        lengths[start] = length
        if start + length > right:
            left, right = start, start + length
    return lengths
