"""What goes wrong with the vocabulary of a converted model, as changes to the vocabulary as a value, and to a file.

Each takes what is right and gives what is wrong in one way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mconv.convert.containers.gguf import TensorInfo, encode_header, read_gguf
from mconv.convert.tensors.block_types import find_block_type
from mconv.convert.tokenizer import TokenType, Vocabulary
from mconv.convert.tokenizer.from_gguf import vocabulary_of_metadata

LOOPING = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
RAISING = "{{ raise_exception('nobody may talk to me') }}"


def shifted(vocabulary: Vocabulary) -> Vocabulary:
    """Every token one place later, the last one first; what is known of each goes along with it."""
    assert vocabulary.scores is None or len(vocabulary.scores) == len(vocabulary.tokens)
    return replace(
        vocabulary,
        tokens=[vocabulary.tokens[-1], *vocabulary.tokens[:-1]],
        types=[vocabulary.types[-1], *vocabulary.types[:-1]],
        scores=vocabulary.scores and [vocabulary.scores[-1], *vocabulary.scores[:-1]],
    )


def made_normal(token: str) -> Callable[[Vocabulary], Vocabulary]:
    """A special token is an ordinary one, which no prompt finds."""

    def change(vocabulary: Vocabulary) -> Vocabulary:
        place = vocabulary.tokens.index(token)
        assert vocabulary.types[place] is TokenType.CONTROL
        types = list(vocabulary.types)
        types[place] = TokenType.NORMAL
        return replace(vocabulary, types=types)

    return change


def without_tokens(*tokens: str) -> Callable[[Vocabulary], Vocabulary]:
    """Special tokens have the names of unused ones."""

    def change(vocabulary: Vocabulary) -> Vocabulary:
        names = [f"<SPECIAL_{n}>" if token in tokens else token for n, token in enumerate(vocabulary.tokens)]
        assert names != list(vocabulary.tokens)
        return replace(vocabulary, tokens=names)

    return change


def pre_tokenizer(name: str) -> Callable[[Vocabulary], Vocabulary]:
    """Text is split by another model's rule."""
    return lambda vocabulary: replace(vocabulary, pre=name)


def without_bos(vocabulary: Vocabulary) -> Vocabulary:
    """BOS is not put before a text."""
    return replace(vocabulary, add_special={**vocabulary.add_special, "bos": False})


def with_eos(vocabulary: Vocabulary) -> Vocabulary:
    """EOS is put after a text."""
    return replace(vocabulary, add_special={**vocabulary.add_special, "eos": True})


def other_eos(vocabulary: Vocabulary) -> Vocabulary:
    """Another token ends an answer."""
    return replace(vocabulary, special_ids={**vocabulary.special_ids, "eos": vocabulary.special_ids["eos"] + 1})


def flipped_space_prefix(vocabulary: Vocabulary) -> Vocabulary:
    """A text gets no space before it, where it should, or one where it should not."""
    return replace(vocabulary, add_space_prefix=vocabulary.add_space_prefix is False)


def without_merges(*places: int) -> Callable[[Vocabulary], Vocabulary]:
    """Some merges are lost."""

    def change(vocabulary: Vocabulary) -> Vocabulary:
        assert vocabulary.merges is not None
        return replace(vocabulary, merges=[merge for n, merge in enumerate(vocabulary.merges) if n not in places])

    return change


def swapped_merges(one: int, other: int) -> Callable[[Vocabulary], Vocabulary]:
    """Two merges change places."""

    def change(vocabulary: Vocabulary) -> Vocabulary:
        merges = list(vocabulary.merges or ())
        merges[one], merges[other] = merges[other], merges[one]
        return replace(vocabulary, merges=merges)

    return change


def user_defined(vocabulary: Vocabulary) -> Vocabulary:
    """Control tokens are read in what a user writes."""
    types = [TokenType.USER_DEFINED if kind is TokenType.CONTROL else kind for kind in vocabulary.types]
    return replace(vocabulary, types=types)


def template(source: str | None) -> Callable[[Vocabulary], Vocabulary]:
    """Another chat template, whatever it is; None for none."""
    return lambda vocabulary: replace(vocabulary, chat_templates={} if source is None else {"default": source})


def rewrite(source: Path, out: Path, change: Callable[[Vocabulary], Vocabulary]) -> Path:
    """A GGUF file with another vocabulary and the same weights."""
    file = read_gguf(source)
    count = len(file.metadata["tokenizer.ggml.tokens"].content)
    vocabulary = change(vocabulary_of_metadata(source.name, file.metadata, count))
    others = {key: value for key, value in file.metadata.items() if not key.startswith("tokenizer.")}
    first = min((tensor.offset for tensor in file.tensors), default=0)
    infos = [TensorInfo(t.name, t.shape, find_block_type(t.dtype), t.offset - first) for t in file.tensors]
    weights = source.read_bytes()[first:] if infos else b""
    out.write_bytes(encode_header(others | vocabulary.metadata(), infos, file.alignment) + weights)
    return out
