"""Vocabularies from tokenizer.json, against the tokenizers package and as llama.cpp runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mconv.convert.errors import SourceError
from mconv.convert.tokenizer import TokenType, pretokenizer, read_vocabulary

from support.checkpoints_tokenizers import (
    TEXTS,
    LlamaCppModel,
    Loaded,
    llama_2_folder,
    trained_folder,
    write_vocabulary,
)

TRAINED_SIZE = 1024


def _change(folder: Path, **changes: Any) -> None:
    """Set top-level members of a tokenizer.json."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_tekken(tekken_json: Path, tmp_path: Path) -> None:
    vocabulary = read_vocabulary(tekken_json, 131072)
    assert (vocabulary.model, vocabulary.pre, vocabulary.scores) == ("gpt2", "tekken", None)
    assert vocabulary.tokens[:4] == ["<unk>", "<s>", "</s>", "[INST]"]
    assert vocabulary.types == [TokenType.CONTROL] * 1000 + [TokenType.NORMAL] * 130072
    assert vocabulary.merges is not None
    assert len(vocabulary.merges) == 269443
    assert vocabulary.special_ids == {"bos": 1, "eos": 2, "unk": 0, "pad": 11}
    assert vocabulary.add_special == {"bos": False, "eos": False}
    assert vocabulary.chat_template == (tekken_json / "chat_template.jinja").read_text()
    assert vocabulary.notes == ()

    runtime = LlamaCppModel(write_vocabulary(tmp_path / "vocabulary.gguf", vocabulary))
    # The last is where the split of Llama 3, which llama.cpp's converter picks for this file, parts from Tekken's.
    original = Loaded(tekken_json)
    for text in [*TEXTS, " {\n// why", "Plus'Slane"]:
        assert runtime.ids(text) == original.ids(text), text
    assert runtime.ids("<s>[INST]a[/INST]", special=True) == original.ids("<s>[INST]a[/INST]")


def test_tekken_with_the_split_of_llama_3_is_tekken_all_the_same(tekken_json: Path, tmp_path: Path) -> None:
    for path in tekken_json.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    steps = json.loads((tekken_json / "tokenizer.json").read_text())["pre_tokenizer"]
    steps["pretokenizers"][0]["pattern"] = {"Regex": pretokenizer._LLAMA_3}
    _change(tmp_path, pre_tokenizer=steps)
    vocabulary = read_vocabulary(tmp_path, 131072)
    assert vocabulary.pre == "tekken"
    (note,) = vocabulary.notes
    assert "a known mistake" in note


def test_tekken_json_beside_tokenizer_json_is_left_alone(tekken_json: Path, tmp_path: Path) -> None:
    for path in tekken_json.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "tekken.json").write_text("not even JSON")
    assert read_vocabulary(tmp_path, 131072).source == "tokenizer.json"


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (pretokenizer._TEKKEN, "tekken"),
        (pretokenizer._LLAMA_3, "llama-bpe"),
        (pretokenizer._LLAMA_4, "llama4"),
        (pretokenizer._QWEN_2, "qwen2"),
    ],
)
def test_a_trained_vocabulary_is_recognised_by_its_split(tmp_path: Path, pattern: str, name: str) -> None:
    folder = trained_folder(tmp_path, pattern)
    vocabulary = read_vocabulary(folder, TRAINED_SIZE)
    assert vocabulary.pre == name
    assert vocabulary.tokens[900:902] == ["camelCase", "[PAD901]"]
    assert vocabulary.types[900:902] == [TokenType.USER_DEFINED, TokenType.UNUSED]
    assert vocabulary.types[:3] == [TokenType.CONTROL, TokenType.CONTROL, TokenType.NORMAL]
    assert vocabulary.special_ids == {"bos": 0, "eos": 1}
    assert vocabulary.add_special == {"bos": True, "eos": False, "sep": False}
    assert vocabulary.notes == ()

    runtime = LlamaCppModel(write_vocabulary(tmp_path / "vocabulary.gguf", vocabulary))
    original = Loaded(folder)
    for text in TEXTS:
        assert runtime.ids(text) == original.ids(text), text
    assert runtime.ids("a<|end_of_text|>", special=True) == original.ids("a<|end_of_text|>")
    assert runtime.ids("a", add=True) == [0, *original.ids("a")]


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}], "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False}], "smollm"),
    ],
)
def test_the_split_built_into_byte_level(tmp_path: Path, steps: list[dict[str, Any]], name: str) -> None:
    folder = trained_folder(tmp_path, pretokenizer._LLAMA_3)
    for step in steps:
        step.setdefault("trim_offsets", True)
        step.setdefault("use_regex", True)
    _change(folder, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    vocabulary = read_vocabulary(folder, TRAINED_SIZE)
    assert vocabulary.pre == name
    runtime = LlamaCppModel(write_vocabulary(tmp_path / "vocabulary.gguf", vocabulary))
    original = Loaded(folder)
    for text in TEXTS:
        assert runtime.ids(text) == original.ids(text), text


def test_an_unknown_split_is_refused_by_its_expression(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path, r"\w+|\W")
    with pytest.raises(SourceError, match=r"\\\\w\+\|\\\\W") as caught:
        read_vocabulary(folder, TRAINED_SIZE)
    assert "Tekken, Llama 3" in caught.value.hint


def test_tokens_that_merging_does_not_reach_are_noted(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path, pretokenizer._LLAMA_3)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    # Without its merge, a token is found only as a whole word, which llama.cpp looks for and this file then does not.
    _change(folder, model={**model, "merges": model["merges"][:-3], "ignore_merges": False})
    notes = read_vocabulary(folder, TRAINED_SIZE).notes
    assert [note.split(":")[0] for note in notes] == [
        "3 tokens are not the result of any merges, and llama.cpp treats them differently from tokenizer.json"
    ]


def test_a_prefix_space_and_a_normalizer_are_noted(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path, pretokenizer._LLAMA_3)
    step = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    _change(folder, pre_tokenizer=step, normalizer={"type": "NFC"}, model=_without_ignored_merges(folder))
    assert len(read_vocabulary(folder, TRAINED_SIZE).notes) == 2


def _without_ignored_merges(folder: Path) -> dict[str, Any]:
    return {**json.loads((folder / "tokenizer.json").read_text())["model"], "ignore_merges": False}


def test_merges_written_the_old_way(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path, pretokenizer._LLAMA_3)
    before = read_vocabulary(folder, TRAINED_SIZE).metadata()
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    assert isinstance(model["merges"][0], list)
    _change(folder, model={**model, "merges": [" ".join(pair) for pair in model["merges"]]})
    assert read_vocabulary(folder, TRAINED_SIZE).metadata() == before


def test_a_token_named_only_in_the_config_is_added(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path, pretokenizer._LLAMA_3, pad_token={"content": "<|pad|>"}, eos_token="camelCase")
    vocabulary = read_vocabulary(folder, TRAINED_SIZE)
    assert (vocabulary.tokens[901], vocabulary.types[901]) == ("<|pad|>", TokenType.CONTROL)
    assert (vocabulary.tokens[900], vocabulary.types[900]) == ("camelCase", TokenType.CONTROL)
    assert vocabulary.special_ids["eos"] == 900


def test_an_object_for_the_first_token_is_understood(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path, pretokenizer._LLAMA_3, bos_token={"content": "<|begin_of_text|>"})
    assert read_vocabulary(folder, TRAINED_SIZE).add_special["bos"] is True


@pytest.mark.parametrize(
    ("name", "size"), [("tokenizer.model.v1", 32000), ("mistral_instruct_tokenizer_240323.model.v3", 32768)]
)
def test_bpe_as_llama_2_has_it(tmp_path: Path, name: str, size: int) -> None:
    folder = llama_2_folder(tmp_path, name, size)
    vocabulary = read_vocabulary(folder, size + 2)
    assert (vocabulary.model, vocabulary.pre, vocabulary.merges) == ("llama", "default", None)
    assert vocabulary.tokens[size:] == [f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert vocabulary.special_ids == {"bos": 1, "eos": 2, "unk": 0}
    assert vocabulary.add_special == {"bos": True, "sep": False}
    assert vocabulary.add_space_prefix is None
    assert vocabulary.types.count(TokenType.BYTE) == 256
    assert vocabulary.notes == ()
    runtime = LlamaCppModel(write_vocabulary(tmp_path / "vocabulary.gguf", vocabulary))
    original = Loaded(folder)
    for text in TEXTS:
        assert runtime.ids(text) == original.ids(text), text
    if size == 32768:
        assert runtime.ids("[INST]", special=True) == [3]


def test_merges_that_llama_cpp_would_add_are_noted(tmp_path: Path) -> None:
    folder = llama_2_folder(tmp_path, "tokenizer.model.v1", 32000)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    made, merges = set(), []
    for left, right in model["merges"]:
        if left + right not in made:
            made.add(left + right)
            merges.append([left, right])
    _change(folder, model={**model, "merges": merges})
    (note,) = read_vocabulary(folder, 32000).notes
    assert note.startswith(f"llama.cpp merges {len(model['merges']) - len(merges)} pairs")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"normalizer": None}, False),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, False),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, None),
    ],
)
def test_whether_llama_2_puts_a_space_first(tmp_path: Path, change: dict[str, Any], expected: bool | None) -> None:
    folder = llama_2_folder(tmp_path, "tokenizer.model.v1", 32000)
    _change(folder, **change)
    assert read_vocabulary(folder, 32000).add_space_prefix is expected
