"""Differences of tokens that are not a fault of a file, but a property of llama.cpp or tokenizers.

No text is excused by its appearance. Instead, one tokenizer is changed in the one way in which the other library is
known to differ, and must then give exactly the ids of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from mconv.validate.tokens.text_tokenizer import TextTokenizer, Variant


class KnownDifferences:
    """The known ways in which two tokenizers can differ, checked when they do."""

    def __init__(self, artifact: TextTokenizer, reference: TextTokenizer) -> None:
        self._artifact, self._reference = artifact, reference

    def explain(
        self, text: str, ids: Sequence[int], reference_ids: Sequence[int], *, parse_special: bool
    ) -> Variant | None:
        """The change that makes artifact and reference agree; None if there is no such change.

        Args:
            ids: the artifact's ids of the text.
            reference_ids: the reference's ids of the text.
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
