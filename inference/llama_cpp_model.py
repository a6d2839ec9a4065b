"""Run a GGUF file with llama.cpp: logits as numpy arrays."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mconv.convert.errors import SourceError
from mconv.inference.llama_file import LlamaFile
from mconv.inference.llama_vocabulary import LlamaVocabulary
from mconv.inference.schedule import LOGITS_BYTES, MAX_BATCH, LogitBlock, Schedule

if TYPE_CHECKING:
    import numpy as np

    from mconv.convert.model.metadata import Metadata
    from mconv.inference.language_model import ReadOn


class LlamaCppModel:
    """A model loaded by llama.cpp, to be used in a `with` block; a `mconv.inference.language_model.LanguageModel`.

    Args:
        path: the GGUF file; for a split model, its first part.
        threads: threads for llama.cpp, and for the caller's work on its logits; None uses every usable core.
        metadata: the metadata of the file, if its header has already been read.

    Raises:
        OSError, SourceError, FormatError: see `LlamaFile`.
    """

    in_memory = True

    def __init__(self, path: Path, threads: int | None = None, metadata: Metadata | None = None) -> None:
        from mconv.convert.engine.threads import default_threads

        self._file = LlamaFile(path, metadata)
        self.path = path
        self.threads = threads or default_threads()
        self.vocabulary = LlamaVocabulary(self._file)
        self.vocab_size = self.vocabulary.size
        self.provenance = self._file.provenance
        self._api, self._model, self._log = self._file.api, self._file.handle, self._file.log
        self.trained_context: int = self._api.llama_model_n_ctx_train(self._model)

    def __enter__(self) -> LlamaCppModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def used_tokens(self) -> int:
        """`vocab_size` without the padding tokens at the end of the vocabulary."""
        return self.vocabulary.used_tokens()

    def scored_logits(self, chunks: np.ndarray, schedule: Schedule) -> Generator[LogitBlock, None, None]:
        """Run every chunk and yield the logits of its scored positions; see `LogitSource`."""
        with self.context(schedule.length, sequences=schedule.parallel, rows=schedule.rows) as context:
            for step in schedule.steps():
                if step.start == 0:
                    context.clear()
                logits = context.decode(chunks[step.group, step.start : step.stop], step.start, rows=step.rows)
                yield from step.blocks(chunks, logits)

    def likeliest(self, tokens: np.ndarray, first: int) -> np.ndarray:
        """The most likely token after each position, from `first` on; see `LanguageModel`."""
        import numpy as np

        step = max(1, min(MAX_BATCH, LOGITS_BYTES // (4 * self.vocab_size)))
        found = []
        with self.context(len(tokens), rows=step) as context:
            for start in range(0, len(tokens), step):
                stop = min(start + step, len(tokens))
                logits = context.decode(tokens[None, start:stop], start, rows=max(0, stop - max(start, first)))
                found.append(logits[0].argmax(axis=1))
        return np.concatenate(found)

    @contextmanager
    def reader(self, length: int) -> Iterator[ReadOn]:
        """A context for one sequence; see `LanguageModel`."""
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
        """A context for one or more sequences.

        Args:
            length: maximum number of tokens per sequence.
            sequences: how many sequences run in parallel.
            rows: maximum number of logit rows of one `Context.decode`.

        Raises:
            SourceError: llama.cpp cannot create the context; includes the reason.
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
                f"{self.path}: llama.cpp cannot create a context of {sequences} x {length} tokens: {self._log.cause()}",
                "use a smaller --ctx or fewer --max-tokens",
            )
        return Context(self, self._api, handle)

    def failure(self, code: int) -> SourceError:
        """The error for a failed call of llama.cpp."""
        return SourceError(
            f"{self.path}: llama.cpp cannot run it (code {code}): {self._log.cause()}",
            "check that it is a text model for this version of llama.cpp",
        )


class Context:
    """The sequences that a model has read, to be used in a `with` block."""

    def __init__(self, model: LlamaCppModel, api: Any, handle: Any) -> None:
        self._model = model
        self._api = api
        self._handle = handle

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._api.llama_free(self._handle)

    def clear(self) -> None:
        """Remove all sequences."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._handle), True)

    def decode(self, tokens: np.ndarray, start: int, *, rows: int) -> np.ndarray:
        """Read the same number of further tokens in each sequence, and return the logits of the last ones.

        Args:
            tokens: int32[sequences, count], at most `MAX_BATCH` in total.
            start: position of the first token in its sequence.
            rows: for how many of the last tokens of each sequence to return logits.

        Returns:
            float32[sequences, rows, vocabulary]: memory of llama.cpp, overwritten by the next call.

        Raises:
            SourceError: llama.cpp failed; includes the reason.
        """
        import numpy as np

        sequences, count = tokens.shape
        sequence = np.repeat(np.arange(sequences, dtype=np.int32), count)
        members: dict[str, np.ndarray] = {
            "token": np.ascontiguousarray(tokens, np.int32),
            "pos": np.tile(np.arange(start, start + count, dtype=np.int32), sequences),
            "n_seq_id": np.ones(sequence.size, np.int32),
            # llama.cpp takes a list of sequences for each token: here each list points to one item of `sequence`.
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
            raise self._model.failure(code)
        shape = (sequences, rows, self._model.vocab_size)
        if not rows:
            return np.empty(shape, np.float32)
        logits = self._api.llama_get_logits(self._handle)
        if not logits:
            raise self._model.failure(code)
        return np.ctypeslib.as_array(logits, shape=shape)
