"""The vocabulary as a value, and the GGUF metadata it becomes.

Keys and their types are those of llama.cpp's gguf-py (gguf/constants.py `Keys.Tokenizer`, gguf/gguf_writer.py); their
order is that of its converter (conversion/base.py, the `_set_vocab_*` functions).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from mconv.convert.errors import FormatError
from mconv.convert.model.metadata import Metadata, ValueType, array, boolean, string, uint32

TEKKEN_FILE = "tekken.json"
NAMES_OF_SPECIAL_IDS = {
    "bos": "bos",
    "eos": "eos",
    "eot": "eot",
    "unk": "unknown",
    "sep": "seperator",  # the spelling of the format
    "pad": "padding",
    "mask": "mask",
}
"""Each role and its name in the keys."""


class TokenType(IntEnum):
    """What a token is for; the numbers are those in the file (llama.cpp include/llama.h `llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Every token of a model, and the rules for splitting text into tokens.

    Attributes:
        source: name of the file it was read from.
        model: how text is split: 'llama' (SentencePiece: the pair with the best score merges first) or 'gpt2'
            (byte-level BPE: the pair with the lowest merge rank merges first).
        pre: how text is split into words before that, by llama.cpp's name.
        tokens: the text of each id; byte-level text for 'gpt2'.
        types: the type of each id.
        scores: the score of each id, for 'llama' only.
        merges: 'left right' pairs, best first, for 'gpt2' only.
        special_ids: ids with a role: bos, eos, eot, unk, sep, pad, mask.
        add_special: whether to add bos, eos or sep to a text; for a missing role, llama.cpp decides.
        add_space_prefix: whether to put a space before a text; None lets llama.cpp decide.
        chat_templates: Jinja templates by name; the one to use by default is called 'default'.
        notes: what a user should know about how this was made.

    Raises:
        FormatError: the parts contradict each other.
    """

    source: str
    model: str
    pre: str
    tokens: Sequence[str] = field(repr=False)
    types: Sequence[TokenType] = field(repr=False)
    scores: Sequence[float] | None = field(default=None, repr=False)
    merges: Sequence[str] | None = field(default=None, repr=False)
    special_ids: dict[str, int] = field(default_factory=dict)
    add_special: dict[str, bool] = field(default_factory=dict)
    add_space_prefix: bool | None = None
    chat_templates: dict[str, str] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.tokens)) != len(self.tokens):
            token, times = Counter(self.tokens).most_common(1)[0]
            # llama.cpp aborts the process on such a file (src/llama-vocab.cpp, `load`).
            raise FormatError(
                f"{self.source}: token {token!r} appears {times} times",
                "every id needs a different text; rename or remove the repeated token",
            )
        for role, token_id in self.special_ids.items():
            if not 0 <= token_id < len(self.tokens):
                raise FormatError(
                    f"{self.source}: {role} token id {token_id} is outside the vocabulary of {len(self.tokens)}",
                    f"correct {role}_token_id in config.json or {role}_token in tokenizer_config.json",
                )
        for text in (*self.tokens, *(self.merges or ()), *self.chat_templates.values()):
            if not text.isascii():
                _check_unicode(self.source, text)

    @property
    def chat_template(self) -> str | None:
        """The template to use by default."""
        return self.chat_templates.get("default")

    def id_of(self, role: str) -> int | None:
        """The id with a role. The unknown token is also found by type or text, since llama.cpp needs no role for it."""
        if role == "unk" and role not in self.special_ids:
            of_type = [token_id for token_id, kind in enumerate(self.types) if kind is TokenType.UNKNOWN]
            return of_type[0] if of_type else self.tokens.index("<unk>") if "<unk>" in self.tokens else None
        return self.special_ids.get(role)

    def metadata(self) -> Metadata:
        """The `tokenizer.*` keys."""
        keys: Metadata = {}
        if self.add_space_prefix is not None:
            keys["tokenizer.ggml.add_space_prefix"] = boolean(self.add_space_prefix)
        keys["tokenizer.ggml.model"] = string(self.model)
        keys["tokenizer.ggml.pre"] = string(self.pre)
        if self.source == TEKKEN_FILE:
            keys |= self._merges() | self._special_ids() | self._tokens()
        else:
            keys |= self._tokens() | self._merges() | self._special_ids()
        for role, added in self.add_special.items():
            keys[f"tokenizer.ggml.add_{role}_token"] = boolean(added)
        return keys | self._chat_templates()

    def _tokens(self) -> Metadata:
        keys = {"tokenizer.ggml.tokens": array(ValueType.STRING, self.tokens)}
        if self.scores is not None:
            keys["tokenizer.ggml.scores"] = array(ValueType.FLOAT32, self.scores)
        elif self.source == TEKKEN_FILE:
            # BPE has no scores, but llama.cpp's converter writes a zero, as an integer, for each Tekken token.
            keys["tokenizer.ggml.scores"] = array(ValueType.INT32, [0] * len(self.tokens))
        keys["tokenizer.ggml.token_type"] = array(ValueType.INT32, [int(kind) for kind in self.types])
        return keys

    def _merges(self) -> Metadata:
        return {"tokenizer.ggml.merges": array(ValueType.STRING, self.merges)} if self.merges else {}

    def _special_ids(self) -> Metadata:
        return {
            f"tokenizer.ggml.{NAMES_OF_SPECIAL_IDS[role]}_token_id": uint32(token_id)
            for role, token_id in self.special_ids.items()
        }

    def _chat_templates(self) -> Metadata:
        named = [name for name in self.chat_templates if name != "default"]
        keys = {f"tokenizer.chat_template.{name}": string(self.chat_templates[name]) for name in named}
        if named:
            keys["tokenizer.chat_templates"] = array(ValueType.STRING, named)
        if self.chat_template is not None:
            keys["tokenizer.chat_template"] = string(self.chat_template)
        return keys


def unused_token(token_id: int) -> str:
    """The text of an id without a token in the tokenizer, as llama.cpp's converter writes it: `[PAD32000]`."""
    return f"[PAD{token_id}]"


def check_token_id(source: str, token: str, token_id: object, vocab_size: int) -> int:
    """Return `token_id` if it is the number of a row of the embedding matrix.

    Raises:
        FormatError: it is not.
    """
    if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
        raise FormatError(f"{source}: token {token!r} has id {token_id!r}", "ids must be integers from 0")
    if token_id >= vocab_size:
        raise FormatError(
            f"{source}: token {token!r} has id {token_id}, but the embedding matrix has {vocab_size} rows",
            "the tokenizer belongs to another model, or vocab_size in config.json is wrong",
        )
    return token_id


def _check_unicode(source: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError(
            f"{source}: {text[:40]!r} cannot be written as UTF-8", "remove the unpaired surrogate"
        ) from None
