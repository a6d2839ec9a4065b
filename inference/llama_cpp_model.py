"""A GGUF file run by llama.cpp: its vocabulary, its metadata, and logits as numpy arrays."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mconv.convert.containers.gguf import read_gguf
from mconv.convert.errors import FormatError, SourceError
from mconv.inference.amx import use_extra_buffers
from mconv.inference.chunks import LOGITS_BYTES, MAX_BATCH, LogitBlock, Schedule
from mconv.inference.header import check_header
from mconv.inference.llama_log import llama_log

if TYPE_CHECKING:
    import numpy as np

    from mconv.convert.model.metadata import Metadata
    from mconv.inference.model import ReadOn

MAX_TEXT_BYTES = 1 << 30  # llama.cpp counts bytes and tokens in 32 bits
MAX_WORD = 16_000  # characters of one kind in a row; see `tokenize`
SPIN_COUNT = 10_000  # some 0.1 ms: longer than a step between two barriers, shorter than a scheduler's time slice


_NO_COUNT = -(1 << 31)  # what `llama_tokenize` gives where it fails for another reason than too little room

# Runs of letters, of white space and of anything else but digits.
_WORD = re.compile(r"[^\W\d_]+|\s+|(?:[^\w\s]|_)+")


class LlamaCppModel:
    """A model loaded by llama.cpp, to be used in a `with` block; a `mconv.inference.model.LanguageModel`.

    Args:
        path: the GGUF file; of a split model its first part.
        threads: threads for llama.cpp, and for whoever works on its logits; None takes every usable core.
        vocabulary_only: load no weights; all that can be done then is to tokenize.

    Raises:
        OSError: the file cannot be opened.
        SourceError: it is cut off.
        FormatError: it is not GGUF, `mconv.inference.header` refuses it, or llama.cpp cannot load it; with the reason.
    """

    in_memory = True

    def __init__(self, path: Path, threads: int | None = None, *, vocabulary_only: bool = False) -> None:
        spin_briefly()
        import llama_cpp

        from mconv.convert.engine.threads import default_threads

        check_header(path)
        self.path = path
        self.threads = threads or default_threads()
        self._api = llama_cpp
        self._log = llama_log()
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = use_extra_buffers()
        params.vocab_only = vocabulary_only
        self._log.clear()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise FormatError(
                f"{path}: llama.cpp cannot load it: {self._log.cause()}",
                "convert it again, or check that it was copied whole",
            )
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.bos: int = llama_cpp.llama_vocab_bos(self._vocab)
        self.adds_bos: bool = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        self.trained_context: int = llama_cpp.llama_model_n_ctx_train(self._model)

    def __enter__(self) -> LlamaCppModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._api.llama_model_free(self._model)

    @property
    def vocabulary(self) -> LlamaCppModel:
        """This one: llama.cpp has both, see `LanguageModel`."""
        return self

    @property
    def provenance(self) -> Metadata:
        """All metadata of the file, see `LanguageModel`."""
        return read_gguf(self.path).metadata

    def metadata(self, key: str) -> str | None:
        """The value of a GGUF key as text, or None where the file has no such key."""
        length = self._api.llama_model_meta_val_str(self._model, key.encode(), None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        self._api.llama_model_meta_val_str(self._model, key.encode(), buffer, length + 1)
        return buffer.raw[:length].decode("utf-8", "replace")

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> np.ndarray:
        """Token ids, int32[tokens].

        Args:
            text: what to tokenize.
            add_special: add BOS and EOS where the vocabulary says so.
            parse_special: read the spelling of a control token as that token, not as plain text.

        Raises:
            SourceError: llama.cpp has no tokenizer for this file, or the text or a word of it is too long for it.
        """
        import numpy as np

        data = text.encode("utf-8", "replace")
        if len(data) > MAX_TEXT_BYTES:
            raise SourceError(f"the text is too long: {len(data)} bytes", f"use at most {MAX_TEXT_BYTES} bytes of it")
        if self._api.llama_vocab_type(self._vocab) == self._api.LLAMA_VOCAB_TYPE_BPE:
            # Its regular expressions go one call deeper for each character of a word, until the stack is full.
            longest = max((len(word[0]) for word in _WORD.finditer(text)), default=0)
            if longest > MAX_WORD:
                raise SourceError(
                    f"the text has a word of {longest} characters, on which llama.cpp may die",
                    f"break up words, and runs of spaces or signs, of more than {MAX_WORD} characters",
                )

        def fill(room: int) -> tuple[int, np.ndarray]:
            """Count and tokens, the count negative where there are more."""
            tokens = np.empty(room, np.int32)
            pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            return self._api.llama_tokenize(
                self._vocab, data, len(data), pointer, room, add_special, parse_special
            ), tokens

        count, tokens = fill(len(data) + 2)
        if _NO_COUNT < count < 0:
            # A space is the three bytes of its mark where the vocabulary has no token for that.
            count, tokens = fill(-count)
        if count < 0:
            raise SourceError(f"{self.path}: llama.cpp cannot tokenize the text", "check the tokenizer of the file")
        return tokens[:count].copy()

    def used_tokens(self) -> int:
        """`vocab_size` less the tokens at its end that only fill the matrix up."""
        count = self.vocab_size
        unused = self._api.LLAMA_TOKEN_ATTR_UNUSED
        while count and self._api.llama_vocab_get_attr(self._vocab, count - 1) & unused:
            count -= 1
        return count

    def scored_logits(self, chunks: np.ndarray, schedule: Schedule) -> Generator[LogitBlock, None, None]:
        """Run every chunk and yield the logits of its scored positions, see `LogitSource`."""
        with self.context(schedule.length, sequences=schedule.parallel, rows=schedule.rows) as context:
            for step in schedule.steps():
                if step.start == 0:
                    context.clear()
                logits = context.decode(chunks[step.group, step.start : step.stop], step.start, rows=step.rows)
                yield from step.blocks(chunks, logits)

    def likeliest(self, tokens: np.ndarray, first: int) -> np.ndarray:
        """The token that is likeliest after each position from `first` on, see `LanguageModel`."""
        import numpy as np

        step = max(1, min(MAX_BATCH, LOGITS_BYTES // (4 * self.vocab_size)))
        found = []
        with self.context(len(tokens), rows=step) as context:
            for start in range(0, len(tokens), step):
                stop = min(start + step, len(tokens))
                logits = context.decode(tokens[None, start:stop], start, rows=max(0, stop - max(start, first)))
                found.append(logits[0].argmax(axis=1))
        return np.concatenate(found)

    def tokenize_prompt(self, prompt: str) -> np.ndarray:
        """Token ids of a prompt that may spell control tokens, as the chat programs of llama.cpp do, int32[tokens].

        BOS is added where the vocabulary says so, but not before a prompt that has it already, as most chat templates
        write it.
        """
        bos = self.spelling(self.bos)
        return self.tokenize(prompt, add_special=not (bos and prompt.startswith(bos)), parse_special=True)

    def special_id(self, role: str) -> int | None:
        """The id that llama.cpp takes for bos, eos, eot, sep, pad or mask, be it from the file or by itself."""
        token_id = getattr(self._api, f"llama_vocab_{role}")(self._vocab)
        return None if token_id < 0 else token_id

    def text(self, tokens: Sequence[int]) -> str:
        """The text of token ids, control tokens spelled out; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self._piece(token) for token in tokens).decode("utf-8", "replace")

    def control_tokens(self) -> list[str]:
        """The spelling of every control token of the vocabulary."""
        is_control = self._api.llama_vocab_is_control
        return [self.spelling(token) for token in range(self.vocab_size) if is_control(self._vocab, token)]

    def spelling(self, token: int) -> str:
        """A token as the vocabulary writes it; empty for a token that the vocabulary does not have (id -1)."""
        if not 0 <= token < self.vocab_size:
            return ""
        return self._api.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")

    @property
    def eos(self) -> int:
        """The id of the end-of-sequence token, -1 where there is none."""
        return self._api.llama_vocab_eos(self._vocab)

    def ends(self, token: int) -> bool:
        """Whether llama.cpp ends a generation at this token."""
        return self._api.llama_vocab_is_eog(self._vocab, token)

    @contextmanager
    def reader(self, length: int) -> Iterator[ReadOn]:
        """Working memory for one sequence, see `LanguageModel`."""
        with self.context(length) as context:
            position = 0

            def read_on(tokens: np.ndarray) -> np.ndarray:
                nonlocal position
                for start in range(0, len(tokens), MAX_BATCH):
                    part = tokens[None, start : start + MAX_BATCH]
                    logits = context.decode(part, position, rows=1)
                    position += part.size
                return logits[0, 0]

            yield read_on

    def context(self, length: int, *, sequences: int = 1, rows: int = 1) -> Context:
        """Working memory for some sequences.

        Args:
            length: the most tokens in a sequence.
            sequences: how many sequences run side by side.
            rows: the most logit rows that one `Context.decode` asks for.

        Raises:
            SourceError: llama.cpp cannot make it, with its reason.
        """
        params = self._api.llama_context_default_params()
        params.n_ctx = length * sequences
        params.n_batch = params.n_ubatch = MAX_BATCH
        params.n_seq_max = sequences
        params.n_outputs_max = max(rows, sequences)
        params.n_threads = params.n_threads_batch = self.threads
        self._log.clear()
        handle = self._api.llama_init_from_model(self._model, params)
        if not handle:
            raise SourceError(
                f"{self.path}: llama.cpp cannot make a context of {sequences} x {length} tokens: {self._log.cause()}",
                "use a smaller --ctx or fewer --max-tokens",
            )
        return Context(self, self._api, handle)

    def failure(self, code: int) -> SourceError:
        """The error for a call into llama.cpp that did not work."""
        return SourceError(
            f"{self.path}: llama.cpp cannot run it (code {code}): {self._log.cause()}",
            "check that it is a text model for this version of llama.cpp",
        )

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        size = self._api.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self._api.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[:size]


class Context:
    """The sequences that a model has read so far, to be used in a `with` block."""

    def __init__(self, runtime: LlamaCppModel, api: Any, handle: Any) -> None:
        self._runtime = runtime
        self._api = api
        self._handle = handle

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._api.llama_free(self._handle)

    def clear(self) -> None:
        """Forget every sequence."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._handle), True)

    def decode(self, tokens: np.ndarray, start: int, *, rows: int) -> np.ndarray:
        """Read on, by the same number of tokens in each sequence, and give the logits of the last ones.

        Args:
            tokens: int32[sequences, count], at most `MAX_BATCH` in all.
            start: position of the first of them in its sequence.
            rows: how many of the last tokens of each sequence to give logits for.

        Returns:
            float32[sequences, rows, vocabulary]: llama.cpp's own memory, overwritten by the next call.

        Raises:
            SourceError: llama.cpp failed, with its reason.
        """
        import numpy as np

        sequences, count = tokens.shape
        sequence = np.repeat(np.arange(sequences, dtype=np.int32), count)
        members: dict[str, np.ndarray] = {
            "token": np.ascontiguousarray(tokens, np.int32),
            "pos": np.tile(np.arange(start, start + count, dtype=np.int32), sequences),
            "n_seq_id": np.ones(sequence.size, np.int32),
            # A list of sequences for each token: here each list has one member, in place in `sequence`.
            "seq_id": sequence.ctypes.data + np.arange(sequence.size, dtype=np.uintp) * sequence.itemsize,
            "logits": np.tile(np.arange(count) >= count - rows, sequences).astype(np.int8),
        }
        batch = self._api.llama_batch()
        batch.n_tokens = sequence.size
        types = dict(batch._fields_)
        for name, values in members.items():
            setattr(batch, name, values.ctypes.data_as(types[name]))
        code = self._api.llama_decode(self._handle, batch)
        if code:
            raise self._runtime.failure(code)
        shape = (sequences, rows, self._runtime.vocab_size)
        if not rows:
            return np.empty(shape, np.float32)
        logits = self._api.llama_get_logits(self._handle)
        if not logits:
            raise self._runtime.failure(code)
        return np.ctypeslib.as_array(logits, shape=shape)


def spin_briefly() -> None:
    """Have threads that wait for the others sleep soon, unless the user tuned GNU OpenMP; it reads this when loaded.

    Its default spins for milliseconds. On a machine that runs anything else, a thread that lost its core then keeps
    the others burning theirs: several times the CPU time, and more wall time too.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
