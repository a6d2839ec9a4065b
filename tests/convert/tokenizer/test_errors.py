"""Damaged and contradictory tokenizer files: each an error of the closed set, with a hint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mconv.convert.errors import FormatError, MconvError, SourceError
from mconv.convert.tokenizer import Vocabulary, pretokenizer, read_vocabulary
from mconv.convert.tokenizer.vocabulary import TokenType

from support.checkpoints_tokenizers import packaged, sentencepiece_folder, tekken_folder, trained_folder, write_config

SIZE = 1024


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_folder(tmp_path_factory.mktemp("trained"), pretokenizer._LLAMA_3)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of a small, sound tokenizer.json and its configs."""
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def refused(folder: Path, size: int = SIZE) -> MconvError:
    with pytest.raises(MconvError) as caught:
        read_vocabulary(folder, size)
    assert caught.value.hint
    assert "\n" not in caught.value.what + caught.value.hint
    return caught.value


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_no_tokenizer(tmp_path: Path) -> None:
    error = refused(write_config(tmp_path, SIZE))
    assert isinstance(error, SourceError)
    assert "no tokenizer file" in error.what


def test_a_file_in_the_folder_above_is_not_read(tmp_path: Path) -> None:
    sentencepiece_folder(tmp_path, "tokenizer.model.v1", 32000)
    assert "no tokenizer file" in refused(write_config(tmp_path / "inner", 32000), 32000).what


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b'{"a": "\xff"}', b"", b"[" * 100000], ids=lambda text: text[:9])
def test_what_is_no_json_object(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    error = refused(folder)
    assert isinstance(error, FormatError)
    assert error.what.startswith(name)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t["model"]["vocab"].update(x=-1), "'x' has id -1"),
        (lambda t: t["model"]["vocab"].update(x=5.5), "'x' has id 5.5"),
        (lambda t: t["model"]["vocab"].update(x=SIZE), "'x' has id 1024, but the embedding matrix has 1024 rows"),
        (lambda t: t["model"]["vocab"].update(x1=5), "both have id 5"),
        (lambda t: t["model"].update(vocab={}), "contains no tokens"),
        (lambda t: t["model"].update(vocab=[]), "'vocab' is a list"),
        (lambda t: t["model"].update(merges=[]), "contains no merges"),
        (lambda t: t["model"].update(merges=["a b c"]), "merge 'a b c' is not a pair of tokens"),
        (lambda t: t["model"].update(merges=[["a", 1]]), "is not a pair of tokens"),
        (lambda t: t["model"].update(type="WordPiece"), "type 'WordPiece'"),
        (lambda t: t["model"].update(end_of_word_suffix="</w>"), "'end_of_word_suffix' is set"),
        (lambda t: t.pop("model"), "type None"),
        (lambda t: t.update(model=[]), "'model' is a list"),
        (lambda t: t.update(pre_tokenizer=None), "unsupported pre-tokenizer: none"),
        (lambda t: t["pre_tokenizer"].update(pretokenizers=[1]), "is not a list of steps"),
        (lambda t: t["post_processor"].update(processors=[1]), "post-processor is not an object"),
        (lambda t: t["post_processor"].update(processors=1), "'processors' is a int"),
        (lambda t: t["added_tokens"].append(1), "added token None has no text"),
        (lambda t: t["added_tokens"].append({"id": 1, "content": "z"}), "two added tokens have id 1"),
        (lambda t: t["added_tokens"].append({"id": 7000, "content": "z"}), "'z' has id 7000"),
        (lambda t: t["added_tokens"].append({"id": 950, "content": "a"}), "token 'a' appears 2 times"),
        (lambda t: t["added_tokens"].append({"id": 950, "content": "\ud800"}), "cannot be written as UTF-8"),
    ],
)
def test_damage_in_tokenizer_json(folder: Path, change: Callable[[dict[str, Any]], object], what: str) -> None:
    edit(folder / "tokenizer.json", change)
    assert what in refused(folder).what


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("config.json", {"pad_token_id": -1}, "config.json: pad_token_id is -1"),
        ("config.json", {"pad_token_id": SIZE}, "pad token id 1024 is outside the vocabulary of 1024"),
        ("config.json", {"text_config": 1}, "'text_config' is a int"),
        ("tokenizer_config.json", {"chat_template": 1}, "'chat_template' is neither"),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}, "'chat_template' is neither"),
        ("tokenizer_config.json", {"chat_template": "\udc00"}, "cannot be written as UTF-8"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}, "'y' has id 'x'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-3": {"content": "y"}}}, "'y' has id '-3'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5000": {"content": "y"}}}, "'y' has id 5000"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": 1}}, "added token 5 has no text"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "'added_tokens_decoder' is a list"),
    ],
)
def test_damage_beside_tokenizer_json(folder: Path, name: str, change: dict[str, Any], what: str) -> None:
    edit(folder / name, lambda content: content.update(change))
    assert what in refused(folder).what


def test_a_vocabulary_larger_than_the_embedding_matrix(folder: Path) -> None:
    assert "but the embedding matrix has 500 rows" in refused(folder, 500).what


def test_a_named_token_without_a_row_left(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda content: content.update(pad_token="<pad>"))
    assert "'<pad>' has id 901, but the embedding matrix has 901 rows" in refused(folder, 901).what


@pytest.mark.parametrize("cut", [1, 2, 1000, 100003, 493442])
def test_a_cut_sentencepiece_file(tmp_path: Path, cut: int) -> None:
    (tmp_path / "tokenizer.model").write_bytes(packaged("tokenizer.model.v1").read_bytes()[:cut])
    assert isinstance(refused(tmp_path, 32000), FormatError)


@pytest.mark.parametrize(
    "content", [b"", b"\x80" * 20, b"\n\x04\n\x02\xff\xff", b"\n\x02\x18\x63", b"\x0b", b"\x08\x01"]
)
def test_what_is_no_sentencepiece_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert isinstance(refused(tmp_path, 32000), FormatError)


def test_sentencepiece_that_is_not_bpe_or_too_large(tmp_path: Path) -> None:
    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text(Path(__file__).read_text())
    options: dict[str, Any] = {"model_prefix": str(tmp_path / "tokenizer"), "vocab_size": 300, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_type="unigram", **options)
    assert "not a BPE model" in refused(tmp_path, 300).what
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_type="bpe", **options)
    assert "has id 299, but the embedding matrix has 200 rows" in refused(tmp_path, 200).what


def test_added_tokens_beside_sentencepiece(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path, "tokenizer.model.v1", 32000)
    (folder / "added_tokens.json").write_text('{"<pad>": 32000}')
    assert "'<pad>' has id 32000" in refused(folder, 32000).what
    (folder / "added_tokens.json").write_text('{"<s>": 7}')
    assert "token '<s>' appears 2 times" in refused(folder, 32000).what


@pytest.mark.parametrize(
    "change",
    [
        {"vocab": []},
        {"config": {"version": "v7"}},
        {"config": None},
        {"vocab": [{"rank": 0, "token_bytes": "AA==", "token_str": None}] * 131072},
        {"special_tokens": [{"rank": 0, "token_str": "<unk>", "is_control": True}] * 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_damage_in_tekken_json(tmp_path: Path, change: dict[str, Any]) -> None:
    error = refused(tekken_folder(tmp_path, "v7", **change), 131072)
    assert isinstance(error, FormatError)
    assert error.what.startswith("tekken.json: mistral-common cannot read it")


def test_tekken_json_that_is_cut_or_too_large(tmp_path: Path) -> None:
    folder = tekken_folder(tmp_path, "v7")
    assert "has id 131071, but the embedding matrix has 131000 rows" in refused(folder, 131000).what
    whole = (folder / "tekken.json").read_bytes()
    (folder / "tekken.json").write_bytes(whole[:-1000])
    assert refused(folder, 131072).what.startswith("tekken.json: not JSON")


def test_a_role_outside_the_vocabulary() -> None:
    with pytest.raises(FormatError, match="eos token id 2 is outside the vocabulary of 2"):
        Vocabulary("x.json", "gpt2", "tekken", ["a", "b"], [TokenType.NORMAL] * 2, special_ids={"eos": 2})
