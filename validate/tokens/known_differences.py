"""Texts that come out otherwise for no fault of a file: what llama.cpp cannot do, or tokenizers does in its own way.

Nothing is excused by what a text looks like. A tokenizer of one side is changed in the one way in which the library of
the other side is known to differ, and has to give exactly the ids of the other side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from mconv.validate.tokens.text_tokenizer import TextTokenizer, Variant


class KnownDifferences:
    """The ways in which two tokenizers may differ, looked into when they do."""

    def __init__(self, artifact: TextTokenizer, reference: TextTokenizer) -> None:
        self._artifact, self._reference = artifact, reference

    def explain(
        self, text: str, ids: Sequence[int], reference_ids: Sequence[int], *, parse_special: bool
    ) -> Variant | None:
        """The one change that makes the two the same, None where there is no such change.

        Args:
            ids: what the artifact made of the text.
            reference_ids: what the reference made of it.
        """
        for variants, expected in ((self._of_artifact, reference_ids), (self._of_reference, ids)):
            for variant in variants:
                if variant.tokenizer.encode(text, parse_special=parse_special) == expected:
                    return variant
        return None

    @cached_property
    def _of_artifact(self) -> list[Variant]:
        return list(self._artifact.variants(self._reference))

    @cached_property
    def _of_reference(self) -> list[Variant]:
        return list(self._reference.variants(self._artifact))
