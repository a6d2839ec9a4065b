"""Folders with real tokenizer files, and what llama.cpp makes of the vocabulary read from them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mconv.convert.containers.gguf import read_gguf
from mconv.convert.model.metadata import Metadata, ValueType
from mconv.convert.tokenizer import Vocabulary, read_vocabulary

from support.golden import Golden, describe_value, restore_value

# One line: a text. Escapes keep this file ASCII.
TEXTS = [
    "Hello, world! It's a test; WE'RE testing camelCase, HTTPServer2 and snake_case_names.",
    "def f(x):\n    return {k: v for k, v in x.items()  if v != 0x1F}\n\n\n\tprint('done')  # ok\r\n",
    'int main() {\n  return 1234567;\n}\n\n// a comment; ``` "quoted" https://example.org/path?x=1&y=2\n',
    "L'\u00e9t\u00e9 \u00e0 Paris co\u00fbte 1234567,89 \u20ac \u2014 na\u00efve \u00dcbergr\u00f6\u00dfe.",
    "\u041d\u0435\u0449\u043e \u043d\u0430 \u0440\u0443\u0441\u0441\u043a\u043e\u043c \u044f\u0437\u044b\u043a\u0435",
    "\u6211\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e \u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8",
    "\ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea \u0e44\u0e17\u0e22",
    "\U0001f680 \U0001f636\u200d\U0001f32b\ufe0f \U0001f999\U0001f999 \U0001f1eb\U0001f1f7 \u2705",
    "   leading,  double   and trailing spaces   \t\t tabs \n \n\n  newlines \n",
    " ",
    "",
]


def write_config(folder: Path, vocab_size: int, **more: Any) -> Path:
    """A config.json that llama.cpp's converter takes, in a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "vocab_size": vocab_size,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def packaged(name: str) -> Path:
    """A tokenizer file of the mistral-common package."""
    import mistral_common

    return Path(mistral_common.__file__).parent / "data" / name


def sentencepiece_folder(folder: Path, name: str, vocab_size: int, file_name: str = "tokenizer.model") -> Path:
    """A checkpoint's folder with one of Mistral's SentencePiece files."""
    write_config(folder, vocab_size)
    shutil.copy(packaged(name), folder / file_name)
    return folder


def tekken_folder(folder: Path, version: str, special: tuple[str, ...] = (), **changes: Any) -> Path:
    """A checkpoint's folder with Mistral's newest Tekken vocabulary, as if of this version of the tokenizer.

    From v11 on the special tokens are listed in the file: the 20 of before and `special`.
    """
    from mistral_common.tokens.tokenizers.base import SpecialTokens
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    write_config(folder, 131072)
    content = json.loads(packaged("tekken_240911.json").read_text(encoding="utf-8"))
    content["config"]["version"] = version
    if special:
        known = [str(SpecialTokens(token["token_str"]).value) for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
        content["special_tokens"] = [
            {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate((*known, *special))
        ]
    content.update(changes)
    (folder / "tekken.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def tekken_json_folder(folder: Path, tekken: Path, vocab_size: int) -> Path:
    """A folder whose tokenizer.json is what transformers makes of a tekken.json."""
    from transformers.integrations.mistral import convert_tekken_tokenizer

    write_config(folder, vocab_size)
    convert_tekken_tokenizer(str(tekken)).save_pretrained(folder)
    return folder


def llama_2_folder(folder: Path, name: str, vocab_size: int) -> Path:
    """A folder with a SentencePiece file turned into a tokenizer.json, as transformers does for Llama 2."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE

    write_config(folder, vocab_size)
    model = sentencepiece.SentencePieceProcessor(model_file=str(packaged(name)))
    pieces = [model.IdToPiece(token_id) for token_id in range(model.vocab_size())]
    ids = {piece: token_id for token_id, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        pairs = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        merges += [
            (-model.GetScore(ids[piece]), len(left), len(right), left, right)
            for left, right in sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        ]
    merges.sort(key=lambda merge: merge[:3])
    pairs = [merge[3:] for merge in merges]
    tokenizer = Tokenizer(BPE(ids, pairs, fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_tokens(
        [AddedToken(p, special=True, normalized=False) for n, p in enumerate(pieces) if model.IsControl(n) or n == 0]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", ids["<s>"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    names = {**roles, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def trained_folder(folder: Path, pattern: str, **config: Any) -> Path:
    """A checkpoint's folder with a small byte-level BPE tokenizer, trained as one of Llama 3 would be.

    256 bytes and a few hundred merges of this repository's own Python text, two special tokens and one added word.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE

    write_config(folder, 1024, architectures=["LlamaForCausalLM"], model_type="llama", bos_token_id=0)
    tokenizer = Tokenizer(BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8"), *TEXTS], trainer)
    tokenizer.add_tokens([AddedToken("camelCase", normalized=False)])
    template = processors.TemplateProcessing(
        single=f"{special[0]} $A", pair=f"{special[0]} $A {special[0]} $B", special_tokens=[(special[0], 0)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": special[0], "eos_token": special[1], "tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> Path:
    """A GGUF file with a vocabulary and no weights."""
    return write_metadata(path, vocabulary.metadata())


def write_metadata(path: Path, metadata: Metadata) -> Path:
    """The same from the metadata of a vocabulary."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if value.type is ValueType.ARRAY:
            assert value.item_type is not None
            writer.add_key_value(key, value.content, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(value.item_type))
        else:
            writer.add_key_value(key, value.content, gguf.GGUFValueType(value.type))
    writer.add_vocab_size(len(metadata["tokenizer.ggml.tokens"].content))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


class LlamaCppModel:
    """llama.cpp with the vocabulary of a GGUF file."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self._llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)

    def ids(self, text: str, special: bool = False, add: bool = False) -> list[int]:
        """The ids of a text, with special tokens in it recognised or not, with or without bos and eos around it."""
        return self._llama.tokenize(text.encode("utf-8"), add_bos=add, special=special)

    def text(self, ids: list[int]) -> str:
        """The text of some ids, special tokens left out."""
        return self._llama.detokenize(ids).decode("utf-8")


class Loaded:
    """The tokenizer.json of a folder, as the tokenizers package runs it."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(self, text: str) -> list[int]:
        """The ids of a text, nothing put around it."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def converter_metadata(folder: Path, out: Path) -> Metadata:
    """The `tokenizer.*` keys that llama.cpp's converter writes for a folder, in its order."""
    script = Path(os.environ["MCONV_LLAMA_CPP"]) / "convert_hf_to_gguf.py"
    command = [sys.executable, str(script), "--vocab-only", "--outfile", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return {key: value for key, value in read_gguf(out).metadata.items() if key.startswith("tokenizer.")}


def describe_keys(metadata: Metadata) -> list[str]:
    """A line a key, in their order."""
    return [f"{key}: {describe_value(value)}" for key, value in metadata.items()]


def converted_vocabulary(golden: Golden, folder: Path, out: Path, size: int, part: str = "") -> Path:
    """A GGUF file with the vocabulary that llama.cpp's converter writes for a folder, made anew from what is recorded.

    Where it says the same as ours, ours is taken; the rest is short enough to be recorded whole.
    """

    def theirs() -> list[str]:
        return describe_keys(converter_metadata(folder, out))

    ours = read_vocabulary(folder, size).metadata()
    made: Metadata = {}
    for line in golden(theirs, folder, part=part):
        key, description = line.split(": ", 1)
        same = key in ours and describe_value(ours[key]) == description
        made[key] = ours[key] if same else restore_value(description)
    return write_metadata(out, made)
