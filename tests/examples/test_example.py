"""What the bundled example promises: its shapes, size and tokenizer, and texts that were kept from the training."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import sentencepiece
from safetensors import safe_open

from support.paths import EXAMPLES

MODEL = EXAMPLES / "tiny-mistral"
EVALUATION = EXAMPLES / "tiny-mistral-eval.txt"

SUPER_BLOCK = 256


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(MODEL / "tokenizer.model"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def stories() -> Iterator[Any]:
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("stories")
    finally:
        sys.path.remove(str(EXAMPLES))


def test_every_quantized_row_is_whole_super_blocks() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    with safe_open(MODEL / "model.safetensors", framework="numpy") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        types = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert types == {"BF16"}
    assert all(shape[-1] % SUPER_BLOCK == 0 for shape in shapes.values())
    assert config["num_hidden_layers"] >= 8
    heads = config["num_attention_heads"] * config["head_dim"]
    assert heads != config["hidden_size"]
    assert shapes["model.layers.0.self_attn.o_proj.weight"] == [config["hidden_size"], heads]
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"]


def test_bundled_files_fit_in_sixteen_megabytes() -> None:
    files = [path for path in [EVALUATION, *MODEL.iterdir()] if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000


def test_transformers_and_sentencepiece_give_the_same_ids(
    tokenizer: Any, processor: sentencepiece.SentencePieceProcessor
) -> None:
    for text in (*EVALUATION.read_text(encoding="utf-8").split("\n\n")[:200], "x  y\t\u00e9\u4e2d", "12 + 7 = 19"):
        assert tokenizer(text)["input_ids"] == [processor.bos_id(), *processor.encode(text)]


def test_chat_template_uses_one_id_for_each_control_symbol(
    tokenizer: Any, processor: sentencepiece.SentencePieceProcessor
) -> None:
    talk = [{"role": "user", "content": "What is 1 + 2?"}, {"role": "assistant", "content": "1 + 2 = 3"}]
    expected = [
        processor.bos_id(),
        processor.piece_to_id("[INST]"),
        *processor.encode("What is 1 + 2?"),
        processor.piece_to_id("[/INST]"),
        *processor.encode("1 + 2 = 3"),
        processor.eos_id(),
    ]
    assert tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False) == expected
    assert processor.is_control(processor.piece_to_id("[INST]"))
    assert processor.is_control(processor.piece_to_id("[/INST]"))


def test_evaluation_text_is_held_out_and_long_enough(
    stories: Any, processor: sentencepiece.SentencePieceProcessor
) -> None:
    text = EVALUATION.read_text(encoding="utf-8")
    held_out = text.removesuffix("\n").split("\n\n")
    assert all(stories.is_held_out(t) for t in held_out)
    assert not set(held_out) & set(islice(stories.texts(seed=1, held_out=False), 2_000))
    assert len(processor.encode(text)) >= 30_000
