"""A Hugging Face `tokenizer.json` as a vocabulary: byte-level BPE (Tekken, Llama 3), or BPE as in Llama 2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mconv.convert.documents import member, read_object, read_object_if_any
from mconv.convert.errors import FormatError, SourceError
from mconv.convert.tokenizer.added import AddedToken, added_token, named_special_tokens, read_added_tokens
from mconv.convert.tokenizer.pretokenizer import TAKES_WHOLE_WORDS, name_pre_tokenizer
from mconv.convert.tokenizer.special import read_special
from mconv.convert.tokenizer.template import read_chat_templates
from mconv.convert.tokenizer.vocabulary import TokenType, Vocabulary, check_token_id, unused_token

_FILE = "tokenizer.json"
# The score that llama.cpp's converter gives tokens that merging does not make; nothing reads it.
_OTHER_SCORE = -1000.0


def read_tokenizer_json(path: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary in a tokenizer.json, with what tokenizer_config.json beside it adds.

    Raises:
        SourceError: llama.cpp cannot run a tokenizer of this kind.
        FormatError: it is damaged, or a token has an id outside the embedding matrix.
    """
    tokenizer = read_object(path)
    model = member(_FILE, tokenizer, "model", dict)
    if model.get("type") != "BPE":
        raise SourceError(
            f"{_FILE}: a tokenizer of type {model.get('type')!r}", "use a BPE tokenizer; this model family has no other"
        )
    for unsupported in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(unsupported):
            raise SourceError(
                f"{_FILE}: '{unsupported}' is set", "llama.cpp does not support it; train the tokenizer without it"
            )
    pieces = _pieces(model, vocab_size)
    added = _added_tokens(path.parent, tokenizer, pieces, vocab_size)
    read = _in_the_manner_of_llama_2 if model.get("byte_fallback") else _byte_level
    return read(path.parent, tokenizer, pieces, added, vocab_size)


def _byte_level(
    folder: Path, tokenizer: dict[str, Any], pieces: dict[int, str], added: dict[int, AddedToken], vocab_size: int
) -> Vocabulary:
    """As llama.cpp's `_set_vocab_gpt2` (conversion/base.py), except for the pre-tokenizer, see pretokenizer.py."""
    tokens = _texts(pieces, added, vocab_size)
    pre, notes = name_pre_tokenizer(tokenizer, tokens)
    merges = _merges(tokenizer)
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    if whole_words != (pre in TAKES_WHOLE_WORDS) and (unreached := _unreached(pieces, added, merges)):
        verb = "takes" if not whole_words else "does not take"
        notes += (
            f"{unreached} tokens are not the result of any merges, and llama.cpp treats them differently from "
            f"tokenizer.json: it {verb} a whole word that is such a token",
        )
    special_ids, add_special = read_special(folder, tokenizer)
    return Vocabulary(
        source=_FILE,
        model="gpt2",
        pre=pre,
        tokens=tokens,
        types=[_type(token_id, pieces, added) for token_id in range(vocab_size)],
        merges=[f"{left} {right}" for left, right in merges],
        special_ids=special_ids,
        add_special=add_special,
        add_space_prefix=_space_prefix_in_config(folder),
        chat_templates=read_chat_templates(folder),
        notes=notes,
    )


def _in_the_manner_of_llama_2(
    folder: Path, tokenizer: dict[str, Any], pieces: dict[int, str], added: dict[int, AddedToken], vocab_size: int
) -> Vocabulary:
    """As llama.cpp's `_set_vocab_llama_hf` (conversion/base.py), except for four mistakes in it.

    It gives every token the score -1000, so that llama.cpp merges from left to right and not by rank; here a score is
    minus the rank, as in the SentencePiece file that such a tokenizer.json was made from. It makes `[INST]` and other
    special tokens without a role normal ones, which llama.cpp never finds in a prompt. It does not pad the
    vocabulary to the rows of the embedding matrix, so the file does not load. It does not notice that a tokenizer puts
    no space before a text.
    """
    merges = _merges(tokenizer)
    ranks: dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    types = [_type(token_id, pieces, added) for token_id in range(vocab_size)]
    types = [
        TokenType.BYTE if kind is TokenType.NORMAL and re.fullmatch("<0x[0-9A-Fa-f]{2}>", pieces[token_id]) else kind
        for token_id, kind in enumerate(types)
    ]
    add_space_prefix = _space_prefix_in_config(folder)
    if add_space_prefix is None and not _prepends_space(tokenizer):
        add_space_prefix = False
    special_ids, add_special = read_special(folder, tokenizer)
    return Vocabulary(
        source=_FILE,
        model="llama",
        pre="default",
        tokens=_texts(pieces, added, vocab_size),
        types=types,
        scores=[
            float(-ranks.get(pieces[token_id], len(ranks))) if kind is TokenType.NORMAL else _OTHER_SCORE
            for token_id, kind in enumerate(types)
        ],
        special_ids=special_ids,
        add_special=add_special,
        add_space_prefix=add_space_prefix,
        chat_templates=read_chat_templates(folder),
        notes=_incomplete(ranks, merges),
    )


def _pieces(model: dict[str, Any], vocab_size: int) -> dict[int, str]:
    """The tokens of the BPE model itself, by id."""
    pieces: dict[int, str] = {}
    for text, token_id in member(_FILE, model, "vocab", dict).items():
        if check_token_id(_FILE, text, token_id, vocab_size) in pieces:
            raise FormatError(
                f"{_FILE}: tokens {pieces[token_id]!r} and {text!r} both have id {token_id}",
                "give each token its own id",
            )
        pieces[token_id] = text
    if not pieces:
        raise FormatError(f"{_FILE} contains no tokens", "the file is truncated or damaged; download it again")
    return pieces


def _added_tokens(
    folder: Path, tokenizer: dict[str, Any], pieces: dict[int, str], vocab_size: int
) -> dict[int, AddedToken]:
    """The tokens in addition to the model's, by id, as transformers collects them.

    (transformers tokenization_utils_tokenizers.py: those of tokenizer.json, then the `added_tokens_decoder` of
    tokenizer_config.json, then each token that tokenizer_config.json names as special.)
    """
    added: dict[int, AddedToken] = {}
    for entry in member(_FILE, tokenizer, "added_tokens", list):
        token = added_token(_FILE, entry.get("id") if isinstance(entry, dict) else None, entry, vocab_size)
        if token.id in added:
            raise FormatError(f"{_FILE}: two added tokens have id {token.id}", "give each token its own id")
        added[token.id] = token
    for token in read_added_tokens(folder, vocab_size):
        added[token.id] = token
    known = {text: token_id for token_id, text in pieces.items()} | {token.text: token.id for token in added.values()}
    for text in named_special_tokens(read_object_if_any(folder / "tokenizer_config.json")):
        token_id = known.get(text)
        if token_id is None:
            token_id = max(max(pieces), max(added, default=-1)) + 1
            check_token_id("tokenizer_config.json", text, token_id, vocab_size)
        added[token_id] = AddedToken(token_id, text, TokenType.CONTROL)
    return added


def _merges(tokenizer: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs that merge, best first: "left right" in older files, ["left", "right"] in newer ones."""
    merges = []
    for entry in member(_FILE, tokenizer["model"], "merges", list):
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise FormatError(
                f"{_FILE}: merge {entry!r} is not a pair of tokens", "the file is damaged; download it again"
            )
        merges.append((pair[0], pair[1]))
    if not merges:
        raise FormatError(f"{_FILE} contains no merges", "the file is truncated or damaged; download it again")
    return merges


def _texts(pieces: dict[int, str], added: dict[int, AddedToken], vocab_size: int) -> list[str]:
    texts = {token_id: token.text for token_id, token in added.items()}
    return [texts.get(n) or pieces.get(n) or unused_token(n) for n in range(vocab_size)]


def _type(token_id: int, pieces: dict[int, str], added: dict[int, AddedToken]) -> TokenType:
    if token_id in added:
        return added[token_id].type
    return TokenType.NORMAL if token_id in pieces else TokenType.UNUSED


def _unreached(pieces: dict[int, str], added: dict[int, AddedToken], merges: list[tuple[str, str]]) -> int:
    """How many of the model's tokens do not result from merging their own text."""
    from tokenizers.models import BPE

    try:
        model = BPE({text: token_id for token_id, text in pieces.items()}, merges)
    except Exception as error:  # tokenizers has no narrower class
        raise FormatError(f"{_FILE}: {error}", "the file is damaged; download it again") from error
    return sum(len(model.tokenize(text)) != 1 for token_id, text in pieces.items() if token_id not in added)


def _incomplete(ranks: dict[str, int], merges: list[tuple[str, str]]) -> tuple[str, ...]:
    """A note on pairs outside `merges` that make a token nevertheless: llama.cpp merges them too."""
    known, beyond = set(merges), 0
    for text in ranks:
        cuts = ((text[:at], text[at:]) for at in range(1, len(text)))
        beyond += sum(cut not in known and all(len(part) == 1 or part in ranks for part in cut) for cut in cuts)
    if not beyond:
        return ()
    return (
        f"llama.cpp merges {beyond} pairs of tokens that tokenizer.json does not: it may split some words differently",
    )


def _space_prefix_in_config(folder: Path) -> bool | None:
    prefix = read_object_if_any(folder / "tokenizer_config.json").get("add_prefix_space")
    return prefix if isinstance(prefix, bool) else None


def _prepends_space(tokenizer: dict[str, Any]) -> bool:
    """Whether the tokenizer puts a space before a text, with a `Prepend` normalizer or with `Metaspace`."""
    normalizer = member(_FILE, tokenizer, "normalizer", dict)
    pre_tokenizer = member(_FILE, tokenizer, "pre_tokenizer", dict)
    for step in (normalizer, *member(_FILE, normalizer, "normalizers", list)):
        if isinstance(step, dict) and step.get("type") == "Prepend":
            return True
    for step in (pre_tokenizer, *member(_FILE, pre_tokenizer, "pretokenizers", list)):
        if isinstance(step, dict) and step.get("type") == "Metaspace":
            return step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
    return False
