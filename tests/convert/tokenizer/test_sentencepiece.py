"""Vocabularies from SentencePiece files, against SentencePiece itself and as llama.cpp runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from mconv.convert.tokenizer import TokenType, read_vocabulary

from support.checkpoints_tokenizers import TEXTS, LlamaCppModel, packaged, sentencepiece_folder, write_vocabulary

V1 = ("tokenizer.model.v1", 32000)
V3 = ("mistral_instruct_tokenizer_240323.model.v3", 32768)
V7 = ("mistral_instruct_tokenizer_241114.model.v7", 32768)


@pytest.mark.parametrize(("name", "size"), [V1, V3, V7])
def test_pieces_scores_types_and_ids_are_those_of_sentencepiece(tmp_path: Path, name: str, size: int) -> None:
    vocabulary = read_vocabulary(sentencepiece_folder(tmp_path / "model", name, size), size)
    model = sentencepiece.SentencePieceProcessor(model_file=str(packaged(name)))
    everything = range(size)
    assert vocabulary.tokens == [model.IdToPiece(n) for n in everything]
    assert vocabulary.scores == [model.GetScore(n) for n in everything]
    assert [kind is TokenType.CONTROL for kind in vocabulary.types] == [model.IsControl(n) for n in everything]
    assert [kind is TokenType.UNKNOWN for kind in vocabulary.types] == [model.IsUnknown(n) for n in everything]
    assert [kind is TokenType.BYTE for kind in vocabulary.types] == [model.IsByte(n) for n in everything]
    assert (vocabulary.model, vocabulary.pre, vocabulary.merges) == ("llama", "default", None)
    assert vocabulary.special_ids == {"bos": 1, "eos": 2}
    assert vocabulary.notes == ()

    runtime = LlamaCppModel(write_vocabulary(tmp_path / "vocabulary.gguf", vocabulary))
    for text in TEXTS:
        assert runtime.ids(text) == model.Encode(text), text
    assert runtime.ids(TEXTS[0], add=True) == [1, *model.Encode(TEXTS[0])]
    assert runtime.ids("<s></s>", special=True) == [1, 2]


def test_v3_knows_its_control_tokens(tmp_path: Path) -> None:
    vocabulary = read_vocabulary(sentencepiece_folder(tmp_path, *V3), V3[1])
    assert vocabulary.tokens[3:5] == ["[INST]", "[/INST]"]
    assert vocabulary.types[3:5] == [TokenType.CONTROL, TokenType.CONTROL]


def test_a_versioned_file_is_read_when_there_is_no_other(tmp_path: Path) -> None:
    versioned = sentencepiece_folder(tmp_path / "a", *V3, file_name="tokenizer.model.v3")
    plain = sentencepiece_folder(tmp_path / "b", *V3)
    assert read_vocabulary(versioned, V3[1]).metadata() == read_vocabulary(plain, V3[1]).metadata()


def test_added_tokens_and_unused_rows(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path / "model", V1[0], 32008)
    (folder / "added_tokens.json").write_text(json.dumps({"<|user|>": 32000, "shout out": 32001}))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": True,
        "added_tokens_decoder": {
            "2": {"content": "</s>", "special": True},
            "32000": {"content": "<|user|>", "special": False},
            "32002": {"content": "two\u2581words", "special": False},
            "32003": {"content": "[PAD]", "special": True},
        },
        "chat_template": [
            {"name": "default", "template": "{{ messages[0].content }}"},
            {"name": "tool_use!", "template": "{{ tools }}"},
        ],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    vocabulary = read_vocabulary(folder, 32008)
    assert vocabulary.tokens[32000:32004] == ["<|user|>", "shout out", "two words", "[PAD]"]
    assert vocabulary.tokens[32004:] == ["[PAD32004]", "[PAD32005]", "[PAD32006]", "[PAD32007]"]
    control, user, unused = TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED
    assert vocabulary.types[32000:] == [control, user, user, control, unused, unused, unused, unused]
    assert vocabulary.scores is not None
    assert vocabulary.scores[32000:] == [-1000.0] * 4 + [-10000.0] * 4
    assert vocabulary.scores[2] == -1000.0
    assert vocabulary.add_special == {"bos": True, "eos": False}
    keys = vocabulary.metadata()
    assert next(iter(keys)) == "tokenizer.ggml.add_space_prefix"
    assert keys["tokenizer.chat_template.tool_use_"].content == "{{ tools }}"
    assert keys["tokenizer.chat_templates"].content == ["tool_use_"]
    assert keys["tokenizer.chat_template"].content == "{{ messages[0].content }}"

    runtime = LlamaCppModel(write_vocabulary(tmp_path / "vocabulary.gguf", vocabulary))
    assert runtime.ids("<|user|>", special=True) == [32000]
    assert 32001 in runtime.ids("a shout out to you")


def _train(folder: Path, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = folder / "text.txt"
    text.write_text("\n".join([Path(__file__).read_text(encoding="utf-8")] * 2), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=500,
        minloglevel=2,
        **{"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", **options},
    )
    return folder


def test_a_model_without_the_leading_space(tmp_path: Path) -> None:
    folder = _train(tmp_path, add_dummy_prefix=False, remove_extra_whitespaces=False)
    vocabulary = read_vocabulary(folder, 500)
    assert vocabulary.add_space_prefix is False
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    runtime = LlamaCppModel(write_vocabulary(tmp_path / "vocabulary.gguf", vocabulary))
    for text in TEXTS:
        assert runtime.ids(text) == model.Encode(text), text


def test_what_sentencepiece_does_and_llama_cpp_does_not_is_noted(tmp_path: Path) -> None:
    notes = read_vocabulary(_train(tmp_path, normalization_rule_name="nmt_nfkc"), 500).notes
    assert [note.split(" before")[0] for note in notes] == [
        "tokenizer.model normalizes text (such as full-width letters)",
        "tokenizer.model removes repeated spaces",
    ]
