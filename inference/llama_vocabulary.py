"""A vocabulary in llama.cpp: tokens from text and back, special tokens, the chat template."""

from __future__ import annotations

import ctypes
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.errors import SourceError
from mconv.inference.llama_file import LlamaFile

if TYPE_CHECKING:
    import numpy as np

    from mconv.convert.model.metadata import Metadata
    from mconv.convert.tokenizer import Vocabulary

MAX_TEXT_BYTES = 1 << 30  # llama.cpp counts bytes and tokens in 32 bits
MAX_WORD = 16_000  # characters of one kind in a row; see `LlamaVocabulary.tokenize`

_TEMPLATE_KEY = "tokenizer.chat_template"
_NO_COUNT = -(1 << 31)  # returned by `llama_tokenize` if it fails for another reason than a small buffer

# Runs of letters, of white space, and of other characters except digits.
_WORD = re.compile(r"[^\W\d_]+|\s+|(?:[^\w\s]|_)+")


class LlamaVocabulary:
    """The vocabulary of a loaded file. Memory is freed with the last object that refers to the file.

    Attributes:
        size: number of tokens.
        bos: the id of the beginning-of-sequence token, -1 if there is none.
        adds_bos: whether that token is added to a text by default.

    Example:
        >>> LlamaVocabulary.load(Path("model.gguf")).tokenize("Hello")
        array([    1, 23325], dtype=int32)
    """

    def __init__(self, file: LlamaFile) -> None:
        self._file = file
        self._api = file.api
        self._vocab = file.api.llama_model_get_vocab(file.handle)
        self.size: int = file.api.llama_vocab_n_tokens(self._vocab)
        self.bos: int = file.api.llama_vocab_bos(self._vocab)
        self.adds_bos: bool = file.api.llama_vocab_get_add_bos(self._vocab)

    @classmethod
    def load(cls, path: Path, metadata: Metadata | None = None) -> LlamaVocabulary:
        """Load the vocabulary of a GGUF file, without its weights.

        Args:
            path: the file; for a split model, its first part.
            metadata: the metadata of the file, if its header has already been read.

        Raises:
            OSError, SourceError, FormatError: see `LlamaFile`.
        """
        return cls(LlamaFile(path, metadata, vocabulary_only=True))

    @classmethod
    def from_value(cls, vocabulary: Vocabulary, name: str) -> LlamaVocabulary:
        """Load a vocabulary that was read from another kind of file, through a GGUF file without weights.

        Args:
            name: the name of the checkpoint, for messages.

        Raises:
            FormatError: llama.cpp cannot load it.
        """
        from mconv.convert.containers.gguf import encode_header
        from mconv.convert.model.metadata import string

        metadata = {"general.architecture": string("llama"), **vocabulary.metadata()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.gguf"
            path.write_bytes(encode_header(metadata, []))
            return cls.load(path, metadata)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the default chat template; None if there is none."""
        return self.metadata(_TEMPLATE_KEY)

    def metadata(self, key: str) -> str | None:
        """The value of a GGUF key as text, or None if the file has no such key."""
        length = self._api.llama_model_meta_val_str(self._file.handle, key.encode(), None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        self._api.llama_model_meta_val_str(self._file.handle, key.encode(), buffer, length + 1)
        return buffer.raw[:length].decode("utf-8", "replace")

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> np.ndarray:
        """Token ids, int32[tokens].

        Args:
            text: the text to tokenize.
            add_special: add BOS and EOS if the vocabulary requires them.
            parse_special: parse the spelling of a control token as that token, not as plain text.

        Raises:
            SourceError: llama.cpp has no tokenizer for this file, or the text or a word in it is too long.
        """
        import numpy as np

        data = text.encode("utf-8", "replace")
        if len(data) > MAX_TEXT_BYTES:
            raise SourceError(f"the text is too long: {len(data)} bytes", f"use at most {MAX_TEXT_BYTES} bytes of it")
        if self._api.llama_vocab_type(self._vocab) == self._api.LLAMA_VOCAB_TYPE_BPE:
            # Its regular expressions recurse once per character of a word, until the stack overflows.
            longest = max((len(word[0]) for word in _WORD.finditer(text)), default=0)
            if longest > MAX_WORD:
                raise SourceError(
                    f"the text has a word of {longest} characters, which can crash llama.cpp",
                    f"break up words, and runs of spaces or signs, of more than {MAX_WORD} characters",
                )

        def fill(room: int) -> tuple[int, np.ndarray]:
            """Count and tokens; the count is negative if there is not enough room."""
            tokens = np.empty(room, np.int32)
            pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            return self._api.llama_tokenize(
                self._vocab, data, len(data), pointer, room, add_special, parse_special
            ), tokens

        count, tokens = fill(len(data) + 2)
        if _NO_COUNT < count < 0:
            # If the vocabulary has no token for the space mark, a space becomes the three bytes of the mark.
            count, tokens = fill(-count)
        if count < 0:
            raise SourceError(
                f"{self._file.path}: llama.cpp cannot tokenize the text", "check the tokenizer of the file"
            )
        return tokens[:count].copy()

    def tokenize_prompt(self, prompt: str) -> np.ndarray:
        """Token ids of a prompt that may contain control tokens, as in the chat programs of llama.cpp, int32[tokens].

        BOS is added if the vocabulary requires it, but not if the prompt already has it, since most chat templates
        write it.
        """
        bos = self.spelling(self.bos)
        return self.tokenize(prompt, add_special=not (bos and prompt.startswith(bos)), parse_special=True)

    def used_tokens(self) -> int:
        """`size` without the padding tokens at the end of the vocabulary."""
        count = self.size
        unused = self._api.LLAMA_TOKEN_ATTR_UNUSED
        while count and self._api.llama_vocab_get_attr(self._vocab, count - 1) & unused:
            count -= 1
        return count

    def special_id(self, role: str) -> int | None:
        """The id that llama.cpp uses for bos, eos, eot, sep, pad or mask, from the file or by default."""
        token_id = getattr(self._api, f"llama_vocab_{role}")(self._vocab)
        return None if token_id < 0 else token_id

    def text(self, tokens: Sequence[int]) -> str:
        """The text of token ids, control tokens spelled out; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self._piece(token) for token in tokens).decode("utf-8", "replace")

    def control_tokens(self) -> list[str]:
        """The spelling of every control token of the vocabulary."""
        is_control = self._api.llama_vocab_is_control
        return [self.spelling(token) for token in range(self.size) if is_control(self._vocab, token)]

    def spelling(self, token: int) -> str:
        """A token as spelled in the vocabulary; empty for a token that does not exist (id -1)."""
        if not 0 <= token < self.size:
            return ""
        return self._api.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")

    @property
    def eos(self) -> int:
        """The id of the end-of-sequence token, -1 if there is none."""
        return self._api.llama_vocab_eos(self._vocab)

    def ends(self, token: int) -> bool:
        """Whether llama.cpp stops generating at this token."""
        return self._api.llama_vocab_is_eog(self._vocab, token)

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        size = self._api.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self._api.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[:size]
