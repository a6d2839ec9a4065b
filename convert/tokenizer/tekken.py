"""Mistral's own `tekken.json` as a vocabulary, for checkpoints that have no tokenizer.json, such as Magistral.

Read through mistral-common, which defines the format. The result is that of llama.cpp's converter (conversion/base.py
`_set_vocab_mistral`, gguf/vocab.py `MistralVocab`), except for the chat template: that converter writes the name of a
template built into llama.cpp, or the template of another model, and ignores the checkpoint's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.documents import read_object
from mconv.convert.errors import FormatError
from mconv.convert.tokenizer.template import read_chat_templates
from mconv.convert.tokenizer.vocabulary import TokenType, Vocabulary, check_token_id, unused_token

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer


def read_tekken(path: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary in a tekken.json.

    Every special token is a control token. `<s>` is added before a text, and nothing after it. The chat template is the
    checkpoint's own, else the one that mistral-common generates for this version of the tokenizer.

    Raises:
        FormatError: the file is damaged, or has more tokens than the embedding matrix has rows.
    """
    tekken = load_tekken(path)
    special = [tekken.id_to_piece(token_id) for token_id in range(tekken.num_special_tokens)]
    ranked = [tekken.id_to_byte_piece(token_id) for token_id in range(len(special), tekken.n_words)]
    if tekken.n_words > vocab_size:
        check_token_id(path.name, repr(ranked[-1]), tekken.n_words - 1, vocab_size)
    texts = [_byte_level_text(token) for token in ranked]
    missing = range(tekken.n_words, vocab_size)
    templates, notes = _chat_templates(path, tekken.version.value)
    return Vocabulary(
        source=path.name,
        model="gpt2",
        pre="tekken",
        tokens=[*special, *texts, *(unused_token(token_id) for token_id in missing)],
        types=[TokenType.CONTROL] * len(special) + [TokenType.NORMAL] * len(ranked) + [TokenType.UNUSED] * len(missing),
        merges=_merges(ranked, texts, path.name),
        special_ids={
            "bos": tekken.bos_id,
            "eos": tekken.eos_id,
            "unk": tekken.unk_id,
            "pad": tekken.eos_id if tekken.pad_id == -1 else tekken.pad_id,
        },
        add_special={"bos": True, "eos": False},
        chat_templates=templates,
        notes=notes,
    )


def load_tekken(path: Path) -> Tekkenizer:
    """The tokenizer in a tekken.json.

    Raises:
        FormatError: the file is damaged, or of a version that mistral-common does not know.
    """
    read_object(path)  # gives a better error for a file that is not JSON
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    try:
        return Tekkenizer.from_file(path)
    except Exception as error:  # assertions, pydantic's errors, and any error that a wrong type causes
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise FormatError(
            f"{path.name}: mistral-common cannot read it ({reason})",
            "download the file again, or update mistral-common",
        ) from error


def _merges(ranked: list[bytes], texts: list[str], source: str) -> list[str]:
    """Every pair of tokens that makes a token, sorted by the rank of the result, then by the ranks of the two.

    tiktoken merges by the rank of the result, llama.cpp by the position in this list; with all pairs listed they agree.

    Args:
        ranked: the tokens as bytes, by rank; the first 256 are the single bytes.
        texts: the same as byte-level text.
    """
    ranks = {token: rank for rank, token in enumerate(ranked)}
    merges: list[str] = []
    for token in ranked[256:]:
        pairs = []
        for at in range(1, len(token)):
            left = ranks.get(token[:at])
            right = ranks.get(token[at:]) if left is not None else None
            if left is not None and right is not None:
                pairs.append((left, right))
        if not pairs:
            raise FormatError(f"{source}: no two tokens make token {token!r}", "the file is damaged; download it again")
        merges += (f"{texts[left]} {texts[right]}" for left, right in sorted(pairs))
    return merges


def _chat_templates(path: Path, version: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The checkpoint's own templates, else the one that mistral-common generates, with a note."""
    if own := read_chat_templates(path.parent):
        return own, ()
    from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template

    try:
        template = convert_tokenizer_to_chat_template(path)
    except Exception as error:
        return {}, (
            f"no chat template: the checkpoint has none, and mistral-common generates none for {version} ({error})",
        )
    return {"default": template}, (f"chat template generated by mistral-common for tokenizer {version}",)


def _byte_level_text(token: bytes) -> str:
    return token.decode("latin-1").translate(_BYTE_LEVEL)


def _byte_level_alphabet() -> dict[int, str]:
    """GPT-2's letter for each byte: itself where it is printable, else the next free one from U+0100 on.

    (openai/gpt-2 src/encoder.py, `bytes_to_unicode`)
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + place) for place, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_alphabet()
