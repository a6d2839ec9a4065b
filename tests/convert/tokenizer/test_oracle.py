"""Every `tokenizer.*` key against llama.cpp's converter.

It needs the llama.cpp folder of the llama-cpp-python source package (vendor/llama.cpp, with convert_hf_to_gguf.py and
gguf-py), named by the environment variable MCONV_LLAMA_CPP, and torch and transformers, which that converter imports.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mconv.convert.tokenizer import read_vocabulary

from support.checkpoints_tokenizers import (
    converter_metadata,
    llama_2_folder,
    packaged,
    sentencepiece_folder,
    tekken_folder,
    write_config,
)

pytestmark = pytest.mark.skipif(
    "MCONV_LLAMA_CPP" not in os.environ, reason="MCONV_LLAMA_CPP does not name a llama.cpp folder with its converter"
)


def differences(folder: Path, out: Path, size: int) -> dict[str, tuple[Any, Any]]:
    """Keys whose type or content differ: (theirs, ours). The order of the keys must be the same."""
    theirs = converter_metadata(folder, out)
    ours = read_vocabulary(folder, size).metadata()
    assert list(theirs) == list(ours)
    result = {}
    for key, value in ours.items():
        kinds = [value.type.name] + ([value.item_type.name] if value.item_type is not None else [])
        if theirs[key] != (kinds, value.content):
            result[key.removeprefix("tokenizer.").removeprefix("ggml.")] = (theirs[key][1], value.content)
    return result


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tokenizer.model.v1", 32000),
        ("mistral_instruct_tokenizer_240323.model.v3", 32768),
        ("mistral_instruct_tokenizer_241114.model.v7", 32800),
    ],
)
def test_sentencepiece(tmp_path: Path, name: str, size: int) -> None:
    folder = sentencepiece_folder(tmp_path / "model", name, size)
    (folder / "tokenizer_config.json").write_text(
        '{"add_bos_token": true, "add_eos_token": false, "add_prefix_space": null, "chat_template": "x",'
        '"added_tokens_decoder": {"0": {"content": "<unk>", "special": true}, "3": {"content": "two words"}}}'
    )
    assert differences(folder, tmp_path / "theirs.gguf", size) == {}


def test_tekken_in_tokenizer_json(tmp_path: Path) -> None:
    from transformers.integrations.mistral import convert_tekken_tokenizer

    folder = write_config(tmp_path / "model", 131072)
    convert_tekken_tokenizer(str(packaged("tekken_240911.json"))).save_pretrained(folder)
    # Theirs is another split than the file says, see convert/tokenizer/pretokenizer.py.
    assert differences(folder, tmp_path / "theirs.gguf", 131072) == {"pre": ("pixtral", "tekken")}


@pytest.mark.parametrize(
    ("version", "special", "template"),
    [
        ("v7", (), "mistral-v7-tekken"),
        ("v13", ("[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"), "{#- Copyright 2025-present the Unsloth team."),
    ],
)
def test_tekken_alone(tmp_path: Path, version: str, special: tuple[str, ...], template: str) -> None:
    folder = tekken_folder(tmp_path / "model", version, special)
    found = differences(folder, tmp_path / "theirs.gguf", 131072)
    # Theirs is the name of a template built into llama.cpp, or the template of another model.
    assert list(found) == ["chat_template"]
    theirs, ours = found["chat_template"]
    assert theirs.startswith(template)
    assert ours.startswith("{#- Default system message")


def test_llama_2_in_tokenizer_json(tmp_path: Path) -> None:
    folder = llama_2_folder(tmp_path / "model", "mistral_instruct_tokenizer_240323.model.v3", 32768)
    found = differences(folder, tmp_path / "theirs.gguf", 32768)
    # Theirs has no scores and no control tokens but those with a role, see convert/tokenizer/bpe.py.
    assert sorted(found) == ["scores", "token_type"]
    assert set(found["scores"][0]) == {-1000.0}
    types = [pair for pair in zip(*found["token_type"], strict=True) if pair[0] != pair[1]]
    assert set(types) == {(1, 3)}
