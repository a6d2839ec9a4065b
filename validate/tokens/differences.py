"""The first difference of two tokenizations of a text, formatted for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mconv.convert.tokenizer import Vocabulary

_BEFORE, _AFTER = 24, 40  # characters of the text around the place
_IDS_BEFORE, _IDS_AFTER = 2, 6  # tokens


@dataclass(frozen=True)
class Side:
    """The ids around the difference, and their tokens as spelled in the vocabulary."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """The first difference of two lists of ids.

    Attributes:
        text: the text around it.
        reference_text: the text around it in the reference, if that differs.
        position: its position in the whole text, in characters.
        token: how many ids before it are the same.
    """

    text: str
    reference_text: str
    position: int
    token: int
    artifact: Side
    reference: Side

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for a person."""
        sides = (self.artifact, self.reference)
        # If the pieces are the same under different ids, show the ids.
        names = [side.ids if self.artifact.pieces == self.reference.pieces else side.pieces for side in sides]
        here, there = (" | ".join(map(repr, name)) for name in names)
        other = f"in place of {self.reference_text!r}, " if self.reference_text != self.text else ""
        return f"at character {self.position}, {self.text!r}, {other}it has {here} and the reference {there}"


def first_difference(
    text: str,
    ids: Sequence[int],
    reference_ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    vocabularies: tuple[Vocabulary, Vocabulary],
    reference_text: str | None = None,
) -> Difference:
    """Find the first difference of two tokenizations.

    Args:
        text: the text.
        ids: the ids of the artifact.
        reference_ids: the ids of the reference, which differ.
        decode: gives the text of the common ids.
        vocabularies: the vocabularies of the artifact and of the reference.
        reference_text: the text of the reference's ids. Default: `text`.
    """
    expected = text if reference_text is None else reference_text
    same = _common(ids, reference_ids)
    # The difference may be in the middle of the bytes of a character.
    position = _common(text, decode(reference_ids[:same]))
    around = slice(max(0, position - _BEFORE), position + _AFTER)
    return Difference(
        text=text[around],
        reference_text=expected[around],
        position=position,
        token=same,
        artifact=_side(ids, same, vocabularies[0]),
        reference=_side(reference_ids, same, vocabularies[1]),
    )


def _common(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items at the beginning are the same."""
    return next(
        (n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


def _side(ids: Sequence[int], place: int, vocabulary: Vocabulary) -> Side:
    near = tuple(ids[max(0, place - _IDS_BEFORE) : place + _IDS_AFTER])
    return Side(near, tuple(vocabulary.tokens[token_id] for token_id in near))
