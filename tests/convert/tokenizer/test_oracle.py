"""Every `tokenizer.*` key against llama.cpp's converter."""

from __future__ import annotations

from pathlib import Path

import pytest

from mconv.convert.model.metadata import Metadata
from mconv.convert.tokenizer import read_vocabulary

from support.checkpoints_tokenizers import (
    converter_metadata,
    describe_keys,
    llama_2_folder,
    sentencepiece_folder,
    tekken_folder,
)
from support.golden import Golden, restore_value


def differences(theirs: list[str], ours: Metadata) -> dict[str, tuple[str, str]]:
    """Keys whose type or content differ: (theirs, ours), described. The order of the keys must be the same."""
    mine = describe_keys(ours)
    pairs = [(a.split(": ", 1), b.split(": ", 1)) for a, b in zip(theirs, mine, strict=True)]
    assert [their[0] for their, _ in pairs] == [our[0] for _, our in pairs]
    return {
        their[0].removeprefix("tokenizer.").removeprefix("ggml."): (their[1], our[1])
        for their, our in pairs
        if their != our
    }


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tokenizer.model.v1", 32000),
        ("mistral_instruct_tokenizer_240323.model.v3", 32768),
        ("mistral_instruct_tokenizer_241114.model.v7", 32800),
    ],
)
def test_sentencepiece(tmp_path: Path, name: str, size: int, golden: Golden) -> None:
    folder = sentencepiece_folder(tmp_path / "model", name, size)
    (folder / "tokenizer_config.json").write_text(
        '{"add_bos_token": true, "add_eos_token": false, "add_prefix_space": null, "chat_template": "x",'
        '"added_tokens_decoder": {"0": {"content": "<unk>", "special": true}, "3": {"content": "two words"}}}'
    )
    theirs = golden(lambda: describe_keys(converter_metadata(folder, tmp_path / "theirs.gguf")), folder)
    assert differences(theirs, read_vocabulary(folder, size).metadata()) == {}


def test_tekken_in_tokenizer_json(tekken_json: Path, tmp_path: Path, golden: Golden) -> None:
    theirs = golden(lambda: describe_keys(converter_metadata(tekken_json, tmp_path / "theirs.gguf")), tekken_json)
    found = differences(theirs, read_vocabulary(tekken_json, 131072).metadata())
    # Theirs is another split than the file says, see convert/tokenizer/pretokenizer.py.
    assert found == {"pre": ('STRING = "pixtral"', 'STRING = "tekken"')}


@pytest.mark.parametrize(
    ("version", "special", "template"),
    [
        ("v7", (), "mistral-v7-tekken"),
        ("v13", ("[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"), "{#- Copyright 2025-present the Unsloth team."),
    ],
)
def test_tekken_alone(tmp_path: Path, version: str, special: tuple[str, ...], template: str, golden: Golden) -> None:
    folder = tekken_folder(tmp_path / "model", version, special)

    def written() -> dict[str, object]:
        metadata = converter_metadata(folder, tmp_path / "theirs.gguf")
        begins = metadata["tokenizer.chat_template"].content[: len(template)]
        return {"keys": describe_keys(metadata), "template begins": begins}

    theirs, ours = golden(written, folder), read_vocabulary(folder, 131072).metadata()
    # Theirs is the name of a template built into llama.cpp, or the template of another model.
    assert list(differences(theirs["keys"], ours)) == ["chat_template"]
    assert theirs["template begins"] == template
    assert ours["tokenizer.chat_template"].content.startswith("{#- Default system message")


def test_llama_2_in_tokenizer_json(tmp_path: Path, golden: Golden) -> None:
    folder = llama_2_folder(tmp_path / "model", "mistral_instruct_tokenizer_240323.model.v3", 32768)
    theirs = golden(lambda: describe_keys(converter_metadata(folder, tmp_path / "theirs.gguf")), folder)
    ours = read_vocabulary(folder, 32768).metadata()
    found = differences(theirs, ours)
    # Theirs has no scores and no control tokens but those with a role, see convert/tokenizer/bpe.py.
    assert sorted(found) == ["scores", "token_type"]
    assert set(restore_value(found["scores"][0]).content) == {-1000.0}
    their_types, our_types = restore_value(found["token_type"][0]).content, ours["tokenizer.ggml.token_type"].content
    types = [pair for pair in zip(their_types, our_types, strict=True) if pair[0] != pair[1]]
    assert set(types) == {(1, 3)}
