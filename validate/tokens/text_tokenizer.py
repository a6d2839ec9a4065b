"""The interface of all tokenizers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from mconv.convert.tokenizer import Vocabulary


@dataclass(frozen=True)
class Variant:
    """A tokenizer changed in one way.

    Attributes:
        kind: the name of the change, in snake case.
        reason: why the change is not a fault of a file, as a sentence.
    """

    kind: str
    reason: str
    tokenizer: TextTokenizer


class TextTokenizer(AbstractContextManager["TextTokenizer"]):
    """A tokenizer as a user of the file or folder gets it, to be used in a `with` block.

    Attributes:
        name: the library that runs it.
        vocabulary: the same as a value.
    """

    name: str
    vocabulary: Vocabulary

    def encode(self, text: str, *, parse_special: bool = False, add_special: bool = False) -> list[int]:
        """The ids of a text.

        Args:
            parse_special: parse the spelling of a special token as that token, not as plain text.
            add_special: add bos and eos if the tokenizer does so by default.
        """
        raise NotImplementedError

    def encode_prompt(self, prompt: str) -> list[int]:
        """The ids of the output of a chat template, which already contains special tokens, including bos."""
        return self.encode(prompt, parse_special=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with special tokens spelled out."""
        raise NotImplementedError

    def special_id(self, role: str) -> int | None:
        """The id with a role: bos, eos, eot, unk, pad; None if unknown."""
        return self.vocabulary.id_of(role)

    def variants(self, other: TextTokenizer) -> Iterator[Variant]:  # noqa: ARG002
        """Variants of this tokenizer, each with one known difference of the other library, independent of the file."""
        return iter(())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release its resources."""


class InParts(TextTokenizer):
    """A library that does not parse special tokens in a text: split the text at them and encode each part.

    Args:
        special: the tokens to split at, by their text.
    """

    _plain: Callable[[str], list[int]]  # the ids of a text without special tokens

    def __init__(self, special: dict[str, int], adds_bos: bool, adds_eos: bool) -> None:
        self._special = special
        longest_first = sorted(special, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first))) if special else None
        self._adds_bos, self._adds_eos = adds_bos, adds_eos

    def encode(self, text: str, *, parse_special: bool = False, add_special: bool = False) -> list[int]:
        ids = list(self._parts(text)) if parse_special and self._spelled else self._plain(text)
        if add_special:
            before = [self.special_id("bos")] if self._adds_bos else []
            after = [self.special_id("eos")] if self._adds_eos else []
            ids = [token_id for token_id in (*before, *ids, *after) if token_id is not None]
        return ids

    def _parts(self, text: str) -> Iterator[int]:
        start = 0
        for match in self._spelled.finditer(text) if self._spelled else ():
            if match.start() > start:
                yield from self._plain(text[start : match.start()])
            yield self._special[match[0]]
            start = match.end()
        if start < len(text):
            yield from self._plain(text[start:])
