"""Tokenizers with a common interface: llama.cpp, mistral-common, SentencePiece and tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.documents import read_object, read_object_if_any
from mconv.convert.errors import FormatError, SourceError
from mconv.convert.tokenizer import TokenType, Vocabulary, versioned_sentencepiece
from mconv.convert.tokenizer.added import named_special_tokens, read_added_tokens
from mconv.convert.tokenizer.pretokenizer import pre_tokenizer_named, split_in_llama_cpp
from mconv.convert.tokenizer.sentencepiece import without_user_defined
from mconv.convert.tokenizer.tekken import load_tekken
from mconv.validate.tokens.corpus import special_tokens
from mconv.validate.tokens.text_tokenizer import InParts, TextTokenizer, Variant

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    from mconv.inference.llama_vocabulary import LlamaVocabulary
    from mconv.validate.tokens.sources import TokenizerSource

_SPLIT = (
    "llama_cpp_split",
    "llama.cpp's form of this split has no combining marks among the letters, and knows the case of ASCII letters only",
)
_SYMBOLS = (
    "llama_cpp_symbols",
    "SentencePiece finds the symbols that its model lists, such as [REF], in any text; llama.cpp would put a space "
    "after each, so that files for it have them as ordinary tokens",
)
_SPACES = (
    "leading_space",
    "tokenizer.json puts a space before the beginning of a text only, and before none that begins with a space; "
    "SentencePiece and llama.cpp put one before each stretch of text",
)


class LlamaCpp(TextTokenizer):
    """The vocabulary of a GGUF file in llama.cpp.

    Args:
        load: loads it; not called for a vocabulary that would crash llama.cpp.
        vocabulary: the same as a value.
    """

    name = "llama.cpp"

    def __init__(self, load: Callable[[], LlamaVocabulary], vocabulary: Vocabulary) -> None:
        if vocabulary.model == "llama":
            _check_bytes(vocabulary)
        self.vocabulary = vocabulary
        self._loaded = load()

    def encode(self, text: str, *, parse_special: bool = False, add_special: bool = False) -> list[int]:
        return self._loaded.tokenize(text, add_special=add_special, parse_special=parse_special).tolist()

    def encode_prompt(self, prompt: str) -> list[int]:
        return self._loaded.tokenize_prompt(prompt).tolist()

    def decode(self, ids: Sequence[int]) -> str:
        text = self._loaded.text(ids)
        puts_space = self.vocabulary.model == "llama" and self.vocabulary.add_space_prefix is not False
        return text.removeprefix(" ") if puts_space else text

    def special_id(self, role: str) -> int | None:
        # llama.cpp has an unknown token, but no function that returns it.
        return self.vocabulary.id_of(role) if role == "unk" else self._loaded.special_id(role)


class MistralCommon(InParts):
    """A tekken.json in mistral-common, which adds `<s>` before every text.

    Args:
        tekken: the tokenizer of the file.
        vocabulary: the vocabulary of the same checkpoint, for information that is not in the file.
        split: regular expression to split text with, instead of the one in the file.
    """

    name = "mistral-common"

    def __init__(self, tekken: Tekkenizer, vocabulary: Vocabulary, split: str | None = None) -> None:
        self._tekken, self.vocabulary = tekken, vocabulary
        special = {tekken.id_to_piece(number): number for number in range(tekken.num_special_tokens)}
        super().__init__(special, adds_bos=True, adds_eos=False)
        self._plain = self._as_it_is if split is None else self._split_otherwise(split)

    def _as_it_is(self, text: str) -> list[int]:
        return self._tekken.encode(text, bos=False, eos=False)

    def _split_otherwise(self, split: str) -> Callable[[str], list[int]]:
        import tiktoken

        first, last = self._tekken.num_special_tokens, self._tekken.n_words
        ranks = {self._tekken.id_to_byte_piece(number): number - first for number in range(first, last)}
        encoding = tiktoken.Encoding("changed", pat_str=split, mergeable_ranks=ranks, special_tokens={})
        return lambda text: [rank + first for rank in encoding.encode_ordinary(text)]

    def decode(self, ids: Sequence[int]) -> str:
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

        return self._tekken.decode(list(ids), special_token_policy=SpecialTokenPolicy.KEEP)

    def special_id(self, role: str) -> int | None:
        own = {"bos": self._tekken.bos_id, "eos": self._tekken.eos_id, "unk": self._tekken.unk_id}
        return own[role] if role in own else super().special_id(role)

    def variants(self, other: TextTokenizer) -> Iterator[Variant]:
        if isinstance(other, LlamaCpp):
            yield Variant(*_SPLIT, MistralCommon(self._tekken, self.vocabulary, split_in_llama_cpp("tekken")))


class SentencePiece(InParts):
    """A SentencePiece file, run with the same library as in mistral-common.

    Args:
        model: the content of the file.
        vocabulary: the same as a value.
    """

    name = "sentencepiece"

    def __init__(self, model: bytes, vocabulary: Vocabulary) -> None:
        try:
            import sentencepiece
        except ImportError as error:
            raise SourceError(
                f"{vocabulary.source}: the package sentencepiece is not installed", "pip install 'mconv[original]'"
            ) from error
        self._model, self.vocabulary = model, vocabulary
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        self._plain = self._processor.Encode
        adds = vocabulary.add_special
        special = {text: number for number, text in special_tokens(vocabulary).items()}
        super().__init__(special, adds.get("bos", True), adds.get("eos", False))

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.Decode(list(ids))

    def variants(self, other: TextTokenizer) -> Iterator[Variant]:
        if isinstance(other, LlamaCpp):
            yield Variant(*_SYMBOLS, SentencePiece(without_user_defined(self._model), self.vocabulary))


class HuggingFace(TextTokenizer):
    """A tokenizer.json in tokenizers, with the tokens that transformers adds from other files of the folder.

    Args:
        changes: members that replace those of the file.
    """

    name = "tokenizers"

    def __init__(self, path: Path, vocabulary: Vocabulary, changes: Mapping[str, Any] | None = None) -> None:
        from tokenizers import AddedToken, Tokenizer

        content = read_object(path)
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps({**content, **(changes or {})}))
        except Exception as error:  # tokenizers raises nothing narrower
            raise FormatError(f"{path.name}: tokenizers cannot load it ({error})", "download the file again") from error
        self._path, self.vocabulary, self._content = path, vocabulary, content
        known = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        for text, special in _added_beside(path.parent, len(vocabulary.tokens)):
            if text not in known:
                self._tokenizer.add_tokens([AddedToken(text, special=special, normalized=False)])

    def encode(self, text: str, *, parse_special: bool = False, add_special: bool = False) -> list[int]:
        self._tokenizer.encode_special_tokens = not parse_special
        return self._tokenizer.encode(text, add_special_tokens=add_special).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def variants(self, other: TextTokenizer) -> Iterator[Variant]:
        split = split_in_llama_cpp(self.vocabulary.pre)
        if isinstance(other, LlamaCpp) and split is not None:
            steps = pre_tokenizer_named(self.vocabulary.pre)
            steps["pretokenizers"][0]["pattern"] = {"Regex": split}
            yield Variant(*_SPLIT, self._with(pre_tokenizer=steps))
        step = self._content.get("pre_tokenizer") or {}
        at_first = (step.get("type"), step.get("prepend_scheme")) == ("Metaspace", "first")
        if not isinstance(other, HuggingFace) and at_first:
            mark = step["replacement"]
            replace = {"type": "Replace", "pattern": {"String": " "}, "content": mark}
            normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": mark}, replace]}
            yield Variant(*_SPACES, self._with(normalizer=normalizer, pre_tokenizer=None))

    def _with(self, **changes: Any) -> HuggingFace:
        return HuggingFace(self._path, self.vocabulary, changes)


def artifact_tokenizer(source: TokenizerSource) -> TextTokenizer:
    """The tokenizer that a user of the artifact gets: llama.cpp for a GGUF file, for a folder that of transformers.

    Raises:
        SourceError, FormatError: a file that the library cannot read.
    """
    if source.folder is None:
        return LlamaCpp(source.llama_vocabulary, source.vocabulary)
    if (path := source.folder / "tokenizer.json").is_file():
        return HuggingFace(path, source.vocabulary)
    return reference_tokenizer(source)


def reference_tokenizer(source: TokenizerSource, beside: TextTokenizer | None = None) -> TextTokenizer:
    """The reference's own tokenizer: Mistral's file if there is one, otherwise Hugging Face's copy.

    Args:
        source: the reference.
        beside: the tokenizer to compare with. If both have a tokenizer.json, compare these files, not two libraries.

    Raises:
        SourceError, FormatError: a file that the library cannot read.
    """
    if source.folder is None:
        return LlamaCpp(source.llama_vocabulary, source.vocabulary)
    if (path := source.folder / "tekken.json").is_file():
        return MistralCommon(load_tekken(path), source.vocabulary)
    path, model = source.folder / "tokenizer.json", source.folder / "tokenizer.model"
    if path.is_file() and (isinstance(beside, HuggingFace) or not model.is_file()):
        return HuggingFace(path, source.vocabulary)
    found = model if model.is_file() else versioned_sentencepiece(source.folder)
    if found is None:
        raise SourceError(f"{source.folder}: no tokenizer file", "copy the tokenizer of the model into the folder")
    return SentencePiece(found.read_bytes(), source.vocabulary)


def _added_beside(folder: Path, vocab_size: int) -> Iterator[tuple[str, bool]]:
    """Tokens that tokenizer_config.json adds, and whether each is special; see `mconv.convert.tokenizer.bpe`."""
    for token in read_added_tokens(folder, vocab_size):
        yield token.text, token.type is TokenType.CONTROL
    for text in named_special_tokens(read_object_if_any(folder / "tokenizer_config.json")):
        yield text, True


def _check_bytes(vocabulary: Vocabulary) -> None:
    """Check that every byte has a token: otherwise some characters make llama.cpp end the process."""
    known = set(vocabulary.tokens)
    for byte in range(256):
        if f"<0x{byte:02X}>" not in known and (byte > 0x7F or chr(byte) not in known):
            raise FormatError(
                f"{vocabulary.source}: no token for the byte 0x{byte:02X}",
                "convert it again from a tokenizer with byte fallback",
            )
