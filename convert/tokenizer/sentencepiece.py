"""A SentencePiece file (`tokenizer.model`) as a vocabulary.

The file is one protocol buffer message, `ModelProto` of sentencepiece (src/sentencepiece_model.proto); the few fields
that matter here are read from the wire format directly, so that a damaged file cannot do more than raise an error, and
written the same way.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mconv.convert.documents import read_object_if_any
from mconv.convert.errors import FormatError, SourceError
from mconv.convert.tokenizer.added import AddedToken, read_added_tokens
from mconv.convert.tokenizer.protobuf import read_fields, write_fields
from mconv.convert.tokenizer.special import read_special
from mconv.convert.tokenizer.template import read_chat_templates
from mconv.convert.tokenizer.vocabulary import TokenType, Vocabulary, check_token_id, unused_token

_UNUSED_SCORE = -10000.0
ADDED_SCORE = -1000.0
"""The score that llama.cpp's converter gives tokens from the files beside the model."""
# `TrainerSpec.ModelType`
_BPE = 2


@dataclass
class _Model:
    """The fields of `ModelProto` that matter, with the defaults of the proto file."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[TokenType] = field(default_factory=list)
    model_type: int = 1
    adds_space_prefix: bool = True
    removes_extra_spaces: bool = True
    normalizes: bool = False


def read_sentencepiece(path: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary in a SentencePiece BPE file, with the tokens that the files beside it add.

    Pieces, scores and types equal those of llama.cpp's converter (conversion/base.py, `_create_vocab_sentencepiece`):
    user-defined symbols become normal tokens, since llama.cpp would put a space after each one that it finds.

    Raises:
        SourceError: the file cannot be read, or is not a BPE model.
        FormatError: it is damaged, or a token has an id outside the embedding matrix.
    """
    folder = path.parent
    model = _read_model(path)
    if model.model_type != _BPE:
        raise SourceError(
            f"{path.name} is not a BPE model",
            "use a BPE tokenizer; llama.cpp supports no other for this model family",
        )
    if len(model.pieces) > vocab_size:
        check_token_id(path.name, model.pieces[-1], len(model.pieces) - 1, vocab_size)
    missing = range(len(model.pieces), vocab_size)
    tokens = model.pieces + [unused_token(token_id) for token_id in missing]
    scores = model.scores + [_UNUSED_SCORE] * len(missing)
    types = model.types + [TokenType.UNUSED] * len(missing)
    for token in _added_tokens(folder, vocab_size):
        tokens[token.id], types[token.id] = token.text, token.type
        scores[token.id] = ADDED_SCORE

    special_ids, add_special = read_special(folder, read_object_if_any(folder / "tokenizer.json"))
    add_space_prefix = read_object_if_any(folder / "tokenizer_config.json").get("add_prefix_space")
    if not isinstance(add_space_prefix, bool):
        add_space_prefix = None if model.adds_space_prefix else False
    return Vocabulary(
        source=path.name,
        model="llama",
        pre="default",
        tokens=tokens,
        types=types,
        scores=scores,
        special_ids=special_ids,
        add_special=add_special,
        add_space_prefix=add_space_prefix,
        chat_templates=read_chat_templates(folder),
        notes=_notes(path.name, model),
    )


def _added_tokens(folder: Path, vocab_size: int) -> Iterator[AddedToken]:
    for text, token_id in read_object_if_any(folder / "added_tokens.json").items():
        check_token_id("added_tokens.json", text, token_id, vocab_size)
        yield AddedToken(token_id, text, TokenType.USER_DEFINED)
    yield from read_added_tokens(folder, vocab_size)


def _notes(name: str, model: _Model) -> tuple[str, ...]:
    """What SentencePiece does to a text before splitting it, and llama.cpp does not."""
    notes = []
    if model.normalizes:
        notes.append(f"{name} normalizes text (such as full-width letters) before splitting it; llama.cpp does not")
    if model.removes_extra_spaces:
        notes.append(f"{name} removes repeated spaces before splitting text; llama.cpp does not")
    return tuple(notes)


def _read_model(path: Path) -> _Model:
    model = _Model()
    try:
        for number, value in read_fields(path.read_bytes()):
            if number == 1:
                _read_piece(model, dict(read_fields(value)))
            elif number == 2:
                model.model_type = dict(read_fields(value)).get(3, 1)
            elif number == 3:
                normalizer = dict(read_fields(value))
                model.normalizes = bool(normalizer.get(2))
                model.adds_space_prefix = bool(normalizer.get(3, True))
                model.removes_extra_spaces = bool(normalizer.get(4, True))
    except OSError as error:
        raise SourceError(f"{path.name}: {error.strerror}", "check that the file can be read") from error
    except (ValueError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise FormatError(
            f"{path.name} is not a SentencePiece model", "the file is damaged; download it again"
        ) from error
    if not model.pieces:
        raise FormatError(f"{path.name} contains no tokens", "the file is truncated or damaged; download it again")
    return model


def _read_piece(model: _Model, piece: dict[int, Any]) -> None:
    """One `SentencePiece` message. Its types have the same numbers as in llama.cpp."""
    kind = TokenType(piece.get(3, TokenType.NORMAL))
    if kind is TokenType.USER_DEFINED:
        kind = TokenType.NORMAL
    model.pieces.append(piece[1].decode("utf-8"))
    model.scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
    model.types.append(kind)


def write_sentencepiece(vocabulary: Vocabulary) -> bytes:
    """The SentencePiece file of a vocabulary that merges by score.

    Unused tokens at the end, which only pad the embedding matrix, are left out. Numbers of the fields: sentencepiece
    src/sentencepiece_model.proto.
    """
    count = len(vocabulary.tokens)
    while count and vocabulary.types[count - 1] is TokenType.UNUSED:
        count -= 1
    scores = vocabulary.scores or [0.0] * count
    types = list(vocabulary.types)
    unknown = vocabulary.id_of("unk")
    if unknown is not None:
        # Files that list it among their added tokens make it a control token, but SentencePiece needs an unknown token.
        types[unknown] = TokenType.UNKNOWN
    pieces = [
        (1, write_fields([(1, vocabulary.tokens[n]), (2, float(scores[n])), (3, int(types[n]))])) for n in range(count)
    ]
    trainer: list[tuple[int, int | str]] = [
        (3, _BPE),
        (4, count),
        (35, int(TokenType.BYTE in vocabulary.types)),
    ]
    for number, role in enumerate(("unk", "bos", "eos", "pad"), 40):
        token_id = vocabulary.id_of(role)
        # -1, ten bytes on the wire, means "none"; the number of the field for the piece is that of the id plus five.
        trainer.append((number, (1 << 64) - 1 if token_id is None else token_id))
        if token_id is not None:
            trainer.append((number + 5, vocabulary.tokens[token_id]))
    adds_space = int(vocabulary.add_space_prefix is not False)
    normalizer: list[tuple[int, int | str]] = [(1, "identity"), (3, adds_space), (4, 0), (5, 1)]
    return write_fields([*pieces, (2, write_fields(trainer)), (3, write_fields(normalizer))])


def without_user_defined(model: bytes) -> bytes:
    """A SentencePiece file whose user-defined symbols are ordinary pieces, as llama.cpp needs them.

    SentencePiece finds such a symbol in any text; llama.cpp would put a space after it, see `read_sentencepiece`.

    Args:
        model: content of a file that SentencePiece reads.
    """

    def changed(piece: bytes) -> bytes:
        fields = dict(read_fields(piece))
        if fields.get(3) != TokenType.USER_DEFINED:
            return piece
        score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
        return write_fields([(1, fields[1]), (2, score), (3, int(TokenType.NORMAL))])

    return write_fields((number, changed(value) if number == 1 else value) for number, value in read_fields(model))
