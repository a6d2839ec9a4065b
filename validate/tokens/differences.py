"""The first place where two tokenizations of a text part, shown so that a person sees what happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mconv.convert.tokenizer import Vocabulary

_BEFORE, _AFTER = 24, 40  # characters of the text around the place
_IDS_BEFORE, _IDS_AFTER = 2, 6  # tokens


@dataclass(frozen=True)
class Side:
    """Ids around the place, and the tokens that they are, as the vocabulary has them."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """Where two rows of ids part.

    Attributes:
        text: what stands around the place.
        reference_text: what stands there for the reference, where that is not the same.
        position: where in the whole text, in characters.
        token: how many ids are the same before it.
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
        # The same pieces under other ids are told apart by these.
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
    """Say where two tokenizations part.

    Args:
        text: what was tokenized.
        ids: what the artifact made of it.
        reference_ids: what the reference has in their place; not the same.
        decode: the text of the ids that both have.
        vocabularies: of the artifact and of the reference.
        reference_text: the text of the reference's ids; the same text unless told.
    """
    expected = text if reference_text is None else reference_text
    same = _common(ids, reference_ids)
    # The last character before the place may be cut in the middle of its bytes.
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
