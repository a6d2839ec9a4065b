"""Texts that two tokenizers must encode in the same way, grouped by what is difficult about them.

Some are in corpus.txt: languages, code, symbols. The others are generated here, the same in every run: systematic cases
and strings of random characters. All characters were assigned long ago, since tokenizers contain Unicode tables of
different versions.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mconv.convert.tokenizer import TokenType, Vocabulary

_WRITTEN = Path(__file__).with_name("corpus.txt")
_SPECIAL_TYPES = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
# First and last character of Unicode blocks in which almost all characters are assigned.
_BLOCKS = (
    "\u0020\u007e", "\u00a0\u00ff", "\u0100\u017f", "\u0180\u024f", "\u0250\u02af", "\u02b0\u02ff", "\u0300\u036f",
    "\u0391\u03a1", "\u03b1\u03ce", "\u0400\u045f", "\u0460\u052f", "\u0561\u0586", "\u05d0\u05ea", "\u0621\u064a",
    "\u064b\u0669", "\u0901\u0939", "\u093e\u094d", "\u0e01\u0e3a", "\u0e40\u0e5b", "\u0f40\u0f47", "\u10d0\u10f0",
    "\u1100\u1159", "\u13a0\u13f4", "\u1401\u1676", "\u1e00\u1eff", "\u2000\u200f", "\u2010\u205f", "\u2070\u2071",
    "\u20a0\u20bd", "\u2100\u218a", "\u2190\u23fa", "\u2460\u24ff", "\u2500\u27bf", "\u2800\u28ff", "\u3000\u303f",
    "\u3041\u3096", "\u30a0\u30ff", "\u4e00\u9fa5", "\uac00\ud7a3", "\ue000\ue0ff", "\uff01\uffbe",
    "\U00010000\U0001000b", "\U0001d400\U0001d454", "\U0001f300\U0001f5ff", "\U0001f600\U0001f64f",
    "\U00020000\U0002a6d6", "\u0000\u001f", "\u007f\u009f",
)  # fmt: skip
_SPACES = (
    " ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\xa0", "\u1680", "\u2003", "\u2009", "\u200b",
    "\u2028", "\u2029", "\u202f", "\u3000", "\ufeff",
)  # fmt: skip
_EMOJI = (
    "\u263a", "\u2764\ufe0f", "\U0001f600\U0001f602", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f44d\U0001f3fd", "\U0001f9d1\U0001f3ff\u200d\U0001f680", "\U0001f1eb\U0001f1f7\U0001f1ef\U0001f1f5",
    "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "1\ufe0f\u20e3#\ufe0f\u20e3",
    "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f636\u200d\U0001f32b\ufe0f", "\u2602\ufe0e\u2602\ufe0f",
    "\U0001f469\u200d\u2764\ufe0f\u200d\U0001f48b\u200d\U0001f468", "\U0001f004\U0001f0cf", "\U0001f9ff\U0001f9a9",
)  # fmt: skip
_MARKED = (
    "e\u0301e\u0300o\u0308n\u0303A\u030a", "Z\u0351\u0364\u0357a\u0315\u0336l\u0321\u0322g\u034f\u0489o\u0360",
    "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u0643\u0650\u062a\u064e\u0627\u0628\u064c",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0915\u094d\u0937\u093f", "\u0e17\u0e35\u0e48\u0e19\u0e35\u0e48",
    "\u0301", "a\u0301\u0301\u0301", " \u0308", "1\u0301", "\n\u0301", "\u1f00\u03b8\u03b7\u03bd\u1fb6",
    "\u110c\u1161\u11ab", "x\u20d7\u20dd", "\u3042\u3099", "\u0130i\u0307I\u0131",
)  # fmt: skip
_WORDS = (
    "camelCase", "HTTPServer", "iPhone15Pro", "XMLHttpRequest2", "snake_case_name", "SCREAMING_CASE", "kebab-case-name",
    "don't", "DON'T", "they'll've", "O'Neill's", "l'\u00e9t\u00e9", "rock'n'roll", "\u2019s", "\u00c9COLE",
    "\u00e9Cole", "stra\u00dfe", "STRASSE", "\u01c5ep", "\u01c4EP", "\u0130stanbul", "\u0131\u015f\u0131k", "\ufb01sh",
    "\uff21\uff22c", "\u0414\u043e\u043c\u041a\u043d\u0438\u0433\u0438", "\u0438\u041a\u043d\u0438\u0433\u0430",
    "\u03b1\u0392\u03b3",
    "\u0531\u0580\u0561\u0580\u0531\u057f", "\u02b0\u02b2word", "\u00aa\u00ba", "\u6f22\u5b57Kanji\u304b\u306a",
    "a\u200bb\u200cc\u200dd\u2060e\u00adf", "tEsT", "aB", "Ab", "ABc", "aBC", "\u1e9e\u00df", "\ua64a\u1c88",
)  # fmt: skip
_NUMBERS = (
    "1,234,567.89", "1 234 567,89", "1_000_000", "0x1F 0b101 0o17 1e-9 6.02E+23", "3.14.15", "-1 +1 --1 1-2",
    "12:34:56", "2024-05-17", "17/5/24", "50%", "1st 2nd 3rd", "IPv6 fe80::1%eth0", "192.168.0.1/24", "007",
    "\u0661\u0662\u0663", "\u0967\u0968\u0969", "\uff11\uff12\uff13", "\u4e00\u4e8c\u4e09", "\u2167\u00b2\u2153",
    "\u2460\u2461", "\U0001d7ce\U0001d7d9", "a1b2c3", "1a2b3c", "4\u00d75=20", "\u0e51\u0e52", "\u0b67\u0f21",
)  # fmt: skip
# Direction marks, byte order mark, tags, variation selectors, private use, noncharacters.
_INVISIBLE = (
    "\u200e", "\u200f", "\u202a", "\u202e", "\u2066", "\u2069", "\ufeff", "\ufffd", "\ufffe", "\uffff", "\U000e0001",
    "\ufe0f", "\U000e0100", "\ue000", "\U0010ffff",
)  # fmt: skip
# The first characters of blocks for which no vocabulary has tokens: they are encoded as bytes.
_RARE = (
    "\U00010000", "\U00010280", "\U000103a0", "\U00010400", "\U00010900", "\U00012000", "\U00013000", "\U00016800",
    "\U0001d100", "\U00020000", "\u9f00",
)  # fmt: skip
_RUNS = ("a", "A", " ", "\n", "\t", "=", "-", "0", "ha", "ab ", "\u00e9", "\u65e5", "\u0301", "\U0001f600", ".", "\r\n")


@dataclass(frozen=True)
class Group:
    """Texts of one kind.

    Attributes:
        parse_special: whether to parse the spelling of a special token in a text as that token.
    """

    name: str
    texts: tuple[str, ...]
    parse_special: bool = False


def corpus() -> list[Group]:
    """The groups that are the same for every model."""
    made = {
        "white space": _white_space(),
        "signs and line ends": _signs(),
        "numbers": _numbers(),
        "words and case": _in_context(_WORDS),
        "emoji": _in_context(_EMOJI),
        "marks": _in_context(_MARKED),
        "long runs": (piece * length for piece in _RUNS for length in (2, 3, 4, 7, 16, 17, 64, 255, 1000)),
        "control characters": _control_characters(),
        "rare characters": _rare_characters(),
        "random": _random_texts(),
    }
    return [*_written(), *(Group(name, tuple(texts)) for name, texts in made.items())]


def vocabulary_groups(vocabulary: Vocabulary, decode: Callable[[Sequence[int]], str]) -> list[Group]:
    """The groups that are made from the model's own tokens.

    Args:
        decode: gives the text of ids.
    """
    special = tuple(_with_special_tokens(vocabulary))
    return [
        Group("joined tokens", tuple(_joined_tokens(vocabulary, decode))),
        Group("special tokens", special, parse_special=True),
        Group("special tokens as text", special),
    ]


def special_tokens(vocabulary: Vocabulary) -> dict[int, str]:
    """The tokens that are not ordinary text, by id."""
    return {
        token_id: vocabulary.tokens[token_id]
        for token_id, kind in enumerate(vocabulary.types)
        if kind in _SPECIAL_TYPES
    }


def _written() -> Iterator[Group]:
    for part in _WRITTEN.read_text(encoding="utf-8").split("=== ")[1:]:
        name, _, texts = part.partition("\n")
        yield Group(name, tuple(text.removesuffix("\n") for text in texts.split("\n---\n")))


def _in_context(pieces: tuple[str, ...]) -> Iterator[str]:
    """Each piece alone, in a sentence, twice, and after its neighbour."""
    for piece, following in zip(pieces, pieces[1:] + pieces[:1], strict=True):
        yield from (piece, piece + piece, f"so {piece} is, and {piece}.")
        yield from (f"{piece}{following}", f" {piece}\n{following}")


def _white_space() -> Iterator[str]:
    for one, two in itertools.product(_SPACES, repeat=2):
        yield f"a{one}{two}b"
    for space in _SPACES:
        yield from (space, f"{space}x", f"x{space}", f"{space * 3}x{space * 5}y")
        yield from (f"1{space}.{space}!", f"{space}\n\n {space}")
    yield from (f"{'if' * depth}:\n{' ' * 4 * depth}x = {depth}{' ' * depth}\n" for depth in range(12))
    yield from ("", "  a  b   c    d     e", "\n\n\na\n\n b\n  c\n\t\td", " \n \n a", "a \t b", "\ta \n\t\r\n \r b")


def _signs() -> Iterator[str]:
    """The end of a word of signs: splits treat line ends, slashes and apostrophes differently."""
    for sign in ("{", ");", "=", "//", '"', "*/", "...", "->", "`", "\u3002"):
        for end in ("\n", "/", "\n/", "\n//", "\r\n\t", "\n\n/x", "'", "'s"):
            yield f"a {sign}{end} b{sign}{end}c"
    for end in ("S", "T", "RE", "VE", "M", "LL", "D"):
        yield from (f"it'{end} Plus'{end}lane '{end}o", f"it'{end.lower()} plus'{end.lower()}lane '{end.lower()}o")


def _numbers() -> Iterator[str]:
    digits = "12345678901234567890"
    yield from (digits[:length] for length in range(1, 21))
    yield from (f"x{digits[:length]}y {digits[:length]}." for length in range(1, 9))
    yield from _NUMBERS


def _control_characters() -> Iterator[str]:
    for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)):
        yield from (chr(code), f"a{chr(code)}b {chr(code)}{chr(code)}")
    for mark in _INVISIBLE:
        yield from (mark, f"a{mark}b", f"{mark}{mark} {mark}")


def _rare_characters() -> Iterator[str]:
    for first in map(ord, _RARE):
        yield "".join(chr(first + step) for step in range(8))
        yield f"in {chr(first)} a{chr(first + 3)}b, {chr(first + 5)}."


def _random_texts() -> Iterator[str]:
    """Letters of one block, mixed with some of other blocks and spaces."""
    source = random.Random(240911)
    blocks = [(ord(block[0]), ord(block[1])) for block in _BLOCKS]
    for block in blocks:
        for _ in range(12):
            yield "".join(_random_character(source, block, blocks) for _ in range(source.randint(1, 24)))


def _random_character(source: random.Random, block: tuple[int, int], blocks: list[tuple[int, int]]) -> str:
    kind = source.random()
    if kind < 0.2:
        return source.choice(" aZ1.\n'")
    return chr(source.randint(*(source.choice(blocks) if kind < 0.25 else block)))


def _joined_tokens(vocabulary: Vocabulary, decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """Random ordinary tokens, concatenated: words that require merges."""
    source = random.Random(240718)
    ordinary = [token_id for token_id, kind in enumerate(vocabulary.types) if kind is TokenType.NORMAL]
    for _ in range(400 if ordinary else 0):
        text = decode(source.choices(ordinary, k=source.randint(2, 24)))
        if "\ufffd" not in text:
            yield text


def _with_special_tokens(vocabulary: Vocabulary) -> Iterator[str]:
    """Special tokens alone, between letters, spaces and line ends, side by side, and almost spelled correctly."""
    texts = [text for text in special_tokens(vocabulary).values() if not text.startswith("<SPECIAL_")][:40]
    for text, following in zip(texts, texts[1:] + texts[:1], strict=True):
        yield from (text, f"a{text}b", f" {text} x", f"x {text}{text}.")
        yield from (f"{text}{following}", f"{text}\n{following} {text}")
        yield from (text[:-1], text[1:], text.lower(), text.upper(), f"{text[:1]} {text[1:]}")
