"""A vocabulary as the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

import json
from typing import Any

from mconv.convert.tokenizer.pretokenizer import TAKES_WHOLE_WORDS, pre_tokenizer_named
from mconv.convert.tokenizer.sentencepiece import ADDED_SCORE, write_sentencepiece
from mconv.convert.tokenizer.vocabulary import TokenType, Vocabulary

_SPACE = "\u2581"
_ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")


def tokenizer_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """Name to content of every file that the tokenizer needs, chat templates included.

    These are tokenizer.json, and for a vocabulary that merges by score also tokenizer.model.

    Raises:
        SourceError: the pre-tokenizer is unknown.
    """
    if vocabulary.model == "llama":
        files = {
            "tokenizer.model": write_sentencepiece(vocabulary),
            "tokenizer.json": _json(_sentencepiece(vocabulary)),
        }
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
        # The model marks its own control tokens; these are the additional ones.
        scores = vocabulary.scores or ()
        added = [
            entry for entry in _added_tokens(vocabulary) if not entry["special"] or scores[entry["id"]] == ADDED_SCORE
        ]
        config["added_tokens_decoder"] = {str(entry.pop("id")): entry for entry in added}
    return config


def _tokenizer_json(vocabulary: Vocabulary, steps: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json, as the tokenizers package writes it (tokenizers/src/tokenizer/serialization.rs)."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": None,
        **steps,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {
                token: token_id
                for token_id, token in enumerate(vocabulary.tokens)
                # Added tokens too: transformers may build a tokenizer from this table alone.
                if vocabulary.types[token_id] is not TokenType.UNUSED
            },
            **model,
        },
    }


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    template = _template(vocabulary)
    steps = {
        "pre_tokenizer": pre_tokenizer_named(vocabulary.pre),
        "post_processor": {"type": "Sequence", "processors": [byte_level, template]} if template else byte_level,
        "decoder": {**byte_level, "trim_offsets": True},
    }
    model = {
        "ignore_merges": vocabulary.pre in TAKES_WHOLE_WORDS,
        # Byte-level text has no spaces, so the only space is the one between the two.
        "merges": [merge.split(" ", 1) for merge in vocabulary.merges or ()],
    }
    return _tokenizer_json(vocabulary, steps, model)


def _sentencepiece(vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of tokenizer.model, for transformers without the packages that read that file."""
    prefix = vocabulary.add_space_prefix is not False
    unknown = vocabulary.id_of("unk")
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    scheme = "first" if prefix else "never"
    steps = {
        "pre_tokenizer": {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": False},
        "post_processor": _template(vocabulary),
        "decoder": {"type": "Sequence", "decoders": decoders},
    }
    model = {
        "unk_token": None if unknown is None else vocabulary.tokens[unknown],
        "fuse_unk": True,
        "byte_fallback": TokenType.BYTE in vocabulary.types,
        "merges": _merges_by_score(vocabulary),
    }
    return _tokenizer_json(vocabulary, steps, model)


def _merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token; pairs for the token with the best score come first."""
    scores = {
        token: score
        for token, score, kind in zip(vocabulary.tokens, vocabulary.scores or (), vocabulary.types, strict=True)
        if kind is TokenType.NORMAL
    }
    ranked = sorted(scores, key=lambda token: -scores[token])
    cuts = ((token[:at], token[at:]) for token in ranked for at in range(1, len(token)))
    return [(left, right) for left, right in cuts if left in scores and right in scores]


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    special = {TokenType.CONTROL: True, TokenType.UNKNOWN: True, TokenType.USER_DEFINED: False}
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


def _template(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """The post-processor that adds bos and eos to a text; None if neither is added."""
    before = [vocabulary.special_ids["bos"]] if _adds_bos(vocabulary) else []
    adds_eos = vocabulary.add_special.get("eos") and "eos" in vocabulary.special_ids
    after = [vocabulary.special_ids["eos"]] if adds_eos else []
    if not before and not after:
        return None

    def special(token_id: int, sequence: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": vocabulary.tokens[token_id], "type_id": sequence}}

    single, second = (
        [
            *(special(token_id, number) for token_id in before),
            {"Sequence": {"id": name, "type_id": number}},
            *(special(token_id, number) for token_id in after),
        ]
        for number, name in enumerate("AB")
    )
    texts = {vocabulary.tokens[token_id]: token_id for token_id in (*before, *after)}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *second],
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in texts.items()},
    }


def _adds_bos(vocabulary: Vocabulary) -> bool:
    """Whether bos is added before a text; by default as in llama.cpp (src/llama-vocab.cpp, `load`)."""
    silent = vocabulary.model == "llama" or vocabulary.pre in TAKES_WHOLE_WORDS
    return vocabulary.add_special.get("bos", silent) and "bos" in vocabulary.special_ids


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
