"""The tokenizer of the bundled example: SentencePiece BPE with byte fallback, laid out as Mistral's v3 tokenizer is."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

CONTROL_SYMBOLS = ("[INST]", "[/INST]")

# A user's turn is between [INST] and [/INST]; the space before an answer is the one that SentencePiece adds.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant messages are known to this model') }}{% endif %}"
    "{% endfor %}"
)


def train_tokenizer(lines: Iterable[str], vocab_size: int) -> bytes:
    """Train on ``lines`` and return the serialized SentencePiece model.

    Ids 0 to 2 are unk, bos and eos, 3 and 4 the control symbols, then come the 256 bytes and the pieces in the order in
    which they were merged.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        control_symbols=list(CONTROL_SYMBOLS),
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def as_tokenizer_json(processor: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """The same tokenizer for the tokenizers library, which transformers prefers to ``tokenizer.model``.

    SentencePiece joins the pair whose union comes first in the vocabulary; the library wants these pairs spelt out.
    """
    pieces = [processor.id_to_piece(token_id) for token_id in range(processor.vocab_size())]
    vocab = {piece: token_id for token_id, piece in enumerate(pieces)}
    plain = set(pieces[3 + len(CONTROL_SYMBOLS) + 256 :])
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        if piece in plain
        for cut in range(1, len(piece))
        if piece[:cut] in plain and piece[cut:] in plain
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", processor.bos_id())]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [AddedToken(pieces[i], special=True, normalized=False) for i in range(3 + len(CONTROL_SYMBOLS))]
    tokenizer.add_special_tokens(special)
    return tokenizer


def write_tokenizer(model: bytes, folder: Path) -> None:
    """Write ``tokenizer.model`` and the JSON files that transformers reads."""
    (folder / "tokenizer.model").write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    as_tokenizer_json(processor).save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    added = {
        str(token_id): {
            "content": content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token_id, content in enumerate(("<unk>", "<s>", "</s>", *CONTROL_SYMBOLS))
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": added,
        **special,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": 512,
        "tokenizer_class": "LlamaTokenizer",
    }
    for name, content in (("special_tokens_map.json", special), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
