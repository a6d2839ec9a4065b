"""The first place where two tokenizations of a text part, shown so that a person sees what happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from validate.tokenizers import TextTokenizer

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
        position: where in the whole text, in characters.
        token: how many ids are the same before it.
    """

    text: str
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
        shown = (" | ".join(map(repr, name)) for name in names)
        return "at character {} of {!r} it has {}, the reference {}".format(self.position, self.text, *shown)


def first_difference(
    text: str,
    ids: Sequence[int],
    reference_ids: Sequence[int],
    artifact: TextTokenizer,
    reference: TextTokenizer,
) -> Difference:
    """Say where two tokenizations of a text part.

    Args:
        text: what was tokenized.
        ids: what the artifact made of it.
        reference_ids: what the reference made of it; not the same.
    """
    same = _common(ids, reference_ids)
    # The last character before the place may be cut in the middle of its bytes.
    position = _common(text, reference.decode(reference_ids[:same]))
    return Difference(
        text=text[max(0, position - _BEFORE) : position + _AFTER],
        position=position,
        token=same,
        artifact=_side(ids, same, artifact),
        reference=_side(reference_ids, same, reference),
    )


def _common(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items at the beginning are the same."""
    return next(
        (n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


def _side(ids: Sequence[int], place: int, tokenizer: TextTokenizer) -> Side:
    near = tuple(ids[max(0, place - _IDS_BEFORE) : place + _IDS_AFTER])
    return Side(near, tuple(tokenizer.vocabulary.tokens[token_id] for token_id in near))
