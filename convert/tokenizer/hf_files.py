"""A vocabulary as the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

import json
from typing import Any

from convert.tokenizer.pretokenizer import TAKES_WHOLE_WORDS, pre_tokenizer_named
from convert.tokenizer.sentencepiece import ADDED_SCORE, write_sentencepiece
from convert.tokenizer.vocabulary import TokenType, Vocabulary

_ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")


def tokenizer_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """Name to content of every file that the tokenizer needs, chat templates included.

    tokenizer.model for a vocabulary that merges by score, tokenizer.json for byte-level BPE.

    Raises:
        SourceError: a pre-tokenizer that is not known here.
    """
    if vocabulary.model == "llama":
        files = {"tokenizer.model": write_sentencepiece(vocabulary)}
    else:
        files = {"tokenizer.json": _json(_byte_level(vocabulary))}
    files["tokenizer_config.json"] = _json(_tokenizer_config(vocabulary))
    for name, template in vocabulary.chat_templates.items():
        path = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
        files[path] = template.encode("utf-8")
    return files


def _tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    sentencepiece = vocabulary.model == "llama"
    config: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer" if sentencepiece else "PreTrainedTokenizerFast",
        "add_bos_token": _adds_bos(vocabulary),
        "add_eos_token": vocabulary.add_special.get("eos", False),
        "clean_up_tokenization_spaces": False,
    }
    for role in _ROLES:
        token_id = vocabulary.id_of(role)
        if token_id is not None:
            config[f"{role}_token"] = vocabulary.tokens[token_id]
    if vocabulary.add_space_prefix is not None:
        config["add_prefix_space"] = vocabulary.add_space_prefix
    if sentencepiece:
        # The model marks its own control tokens; these are the ones on top of it.
        scores = vocabulary.scores or ()
        added = [
            entry for entry in _added_tokens(vocabulary) if not entry["special"] or scores[entry["id"]] == ADDED_SCORE
        ]
        config["added_tokens_decoder"] = {str(entry.pop("id")): entry for entry in added}
    return config


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer.json, as the tokenizers package writes it (tokenizers/src/models/bpe/serialization.rs)."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer_named(vocabulary.pre),
        "post_processor": _post_processor(vocabulary),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": vocabulary.pre in TAKES_WHOLE_WORDS,
            "vocab": {
                token: token_id
                for token_id, token in enumerate(vocabulary.tokens)
                # Added tokens too: transformers may build a tokenizer from this table alone.
                if vocabulary.types[token_id] is not TokenType.UNUSED
            },
            # Byte-level text has no spaces, so the one between the two is the only one.
            "merges": [merge.split(" ", 1) for merge in vocabulary.merges or ()],
        },
    }


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    special = {TokenType.CONTROL: True, TokenType.UNKNOWN: True, TokenType.USER_DEFINED: False}
    if vocabulary.model == "llama":
        del special[TokenType.UNKNOWN]
    return [
        {
            "id": token_id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special[kind],
        }
        for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in special
    ]


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any]:
    """What puts bos and eos around a text."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    before = ["bos"] if _adds_bos(vocabulary) else []
    after = ["eos"] if vocabulary.add_special.get("eos") and "eos" in vocabulary.special_ids else []
    if not before and not after:
        return byte_level

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": sequence, "type_id": type_id}}
        return [*map(special(type_id), before), text, *map(special(type_id), after)]

    def special(type_id: int) -> Any:
        return lambda role: {
            "SpecialToken": {"id": vocabulary.tokens[vocabulary.special_ids[role]], "type_id": type_id}
        }

    ids = {vocabulary.tokens[number]: number for role in (*before, *after) for number in [vocabulary.special_ids[role]]}
    template = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in ids.items()},
    }
    return {"type": "Sequence", "processors": [byte_level, template]}


def _adds_bos(vocabulary: Vocabulary) -> bool:
    """Whether bos is put before a text; where the file is silent, what llama.cpp does (src/llama-vocab.cpp, `load`)."""
    silent = vocabulary.model == "llama" or vocabulary.pre in TAKES_WHOLE_WORDS
    return vocabulary.add_special.get("bos", silent) and "bos" in vocabulary.special_ids


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
