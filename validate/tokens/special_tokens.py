"""Check special tokens, and the tokens that are added around a text by default."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mconv.convert.tokenizer import Vocabulary
from mconv.validate.findings import Finding
from mconv.validate.tokens.corpus import special_tokens
from mconv.validate.tokens.text_tokenizer import TextTokenizer

_SHOWN = 20


def wrong_special_tokens(artifact: TextTokenizer, reference: TextTokenizer) -> Iterator[Finding]:
    """Check that each special token of the reference becomes a single, correct id."""
    for token_id, token in special_tokens(reference.vocabulary).items():
        ids = artifact.encode(token, parse_special=True)
        if ids == [token_id]:
            continue
        if len(ids) == 1:
            what = f"{token!r} is id {ids[0]}, but {token_id} in the reference"
            yield Finding("tokens", "special_token_id", token, what)
        else:
            pieces = " | ".join(repr(artifact.vocabulary.tokens[part]) for part in ids)
            what = f"{token!r} becomes {len(ids)} tokens, {pieces}{_type_of(token, artifact.vocabulary)}"
            yield Finding("tokens", "special_token_split", token, what)


def _type_of(token: str, vocabulary: Vocabulary) -> str:
    if token not in vocabulary.tokens:
        return "; the vocabulary does not have it"
    token_id = vocabulary.tokens.index(token)
    return f"; it is there as id {token_id}, of type {vocabulary.types[token_id].name.lower()}"


def shortened(wrong: Sequence[Finding]) -> list[Finding]:
    """The first findings; the last one includes the number of others."""
    shown = list(wrong[:_SHOWN])
    if len(wrong) > len(shown):
        shown[-1] = replace(shown[-1], what=f"{shown[-1].what}; and {len(wrong) - len(shown)} more special tokens")
    return shown


def surroundings(artifact: TextTokenizer, reference: TextTokenizer) -> Iterator[Finding]:
    """Compare the tokens added around a text by default: bos before it, eos after it."""
    ours, theirs = _around(artifact), _around(reference)
    for role, put, expected in zip(("bos", "eos"), ours, theirs, strict=True):
        if put != expected:
            here, there = (" ".join(token) or "nothing" for token in (put, expected))
            where = "before" if role == "bos" else "after"
            what = f"{role}: {here} is added {where} a text, but {there} in the reference"
            yield Finding("tokens", f"{role}_differs", role, what)


def _around(tokenizer: TextTokenizer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tokens before and after a text."""
    bare = tokenizer.encode("a")
    whole = tokenizer.encode("a", add_special=True)
    start = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    tokens = tokenizer.vocabulary.tokens
    before, after = whole[:start], whole[start + len(bare) :]
    return tuple(tokens[n] for n in before), tuple(tokens[n] for n in after)
