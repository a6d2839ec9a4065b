"""Run a checkpoint with transformers, so that errors of a conversion are measured, and not only those of later steps.

Weights are widened to float32 and everything is computed in float32: bfloat16 arithmetic would add an error as large as
the loss of a good quantization. If the whole model does not fit into memory, decoder layers are loaded one at a time,
and each processes a group of chunks before it is released.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from mconv.convert.errors import UsageError
from mconv.inference.llama_vocabulary import LlamaVocabulary
from mconv.inference.openmp import spin_briefly
from mconv.inference.schedule import LOGITS_BYTES, LogitBlock, Schedule, first_scored

if TYPE_CHECKING:
    import numpy as np

    from mconv.convert.model.checkpoint import Checkpoint
    from mconv.inference.language_model import ReadOn

SHARE_OF_MEMORY = 0.5  # of the free memory when the model is opened: the rest is for artifacts and for the page cache
HIDDEN_BYTES = 128 << 20  # hidden states of the chunks that go through a layer together


class TransformersModel:
    """A checkpoint with float weights, to be used in a `with` block; a `mconv.inference.language_model.LanguageModel`.

    Texts are tokenized by llama.cpp, with the vocabulary of the checkpoint, so that the ids are those of
    llama-perplexity for a converted file. Another check compares the result with the model's own tokenizer.

    Args:
        checkpoint: an opened Hugging Face or Megatron folder.
        threads: number of threads; None uses every usable core.

    Raises:
        UsageError: torch or transformers are not installed.
        SourceError, FormatError, MappingError: the tokenizer cannot be read, or transformers cannot build the model.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int | None = None) -> None:
        spin_briefly()
        try:
            import torch

            from mconv.inference.streamed_model import StreamedModel
        except ImportError as error:
            raise UsageError(
                f"{checkpoint.path}: running a checkpoint folder needs torch and transformers ({error})",
                "pip install 'mconv[original]'",
            ) from error
        from mconv.convert.engine.threads import default_threads
        from mconv.inference.streamed_weights import Weights, available_memory

        self.path = checkpoint.path
        self.threads = threads or default_threads()
        self.vocab_size = checkpoint.spec.vocab
        self.trained_context = checkpoint.spec.context
        self._hidden = checkpoint.spec.hidden
        self._model = StreamedModel(checkpoint, Weights(checkpoint, int(available_memory() * SHARE_OF_MEMORY)))
        self.in_memory = self._model.in_memory
        self.provenance = checkpoint.provenance
        self.vocabulary = LlamaVocabulary.from_value(checkpoint.vocabulary(), checkpoint.path.name)
        torch.set_num_threads(self.threads)

    def __enter__(self) -> TransformersModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: its memory is freed with the object."""

    def used_tokens(self) -> int:
        """`vocab_size` without the padding tokens at the end of the vocabulary."""
        return self.vocabulary.used_tokens()

    def likeliest(self, tokens: np.ndarray, first: int) -> np.ndarray:
        """The most likely token after each position, from `first` on; see `LanguageModel`."""
        import numpy as np

        hidden = self._model.hidden(tokens[None])[:, first:]
        step = max(1, LOGITS_BYTES // (4 * self.vocab_size))
        out = np.empty((min(step, hidden.shape[1]), self.vocab_size), np.float32)
        parts = (hidden[:, start : start + step] for start in range(0, hidden.shape[1], step))
        return np.concatenate([self._model.logits(part, out)[0].argmax(axis=1) for part in parts])

    @contextmanager
    def reader(self, length: int) -> Iterator[ReadOn]:  # noqa: ARG002 the key-value cache grows as needed
        """A context for one sequence; see `LanguageModel`."""
        import numpy as np

        self._model.load()
        cache = self._model.new_cache()
        out = np.empty((1, self.vocab_size), np.float32)

        def read_on(tokens: np.ndarray) -> np.ndarray:
            hidden = self._model.hidden(tokens[None], cache)
            return self._model.logits(hidden[:, -1:], out)[0, 0]

        yield read_on

    def scored_logits(self, chunks: np.ndarray, schedule: Schedule) -> Generator[LogitBlock, None, None]:
        """Run every chunk and yield the logits of its scored positions; see `LogitSource`."""
        import numpy as np

        first = first_scored(schedule.length)
        groups = max(1, HIDDEN_BYTES // (4 * self._hidden * schedule.length * schedule.parallel))
        out = np.empty((schedule.rows, self.vocab_size), np.float32)
        begin = end = 0
        for step in schedule.steps():
            if step.group.start >= end:
                begin, end = step.group.start, step.group.start + groups * schedule.parallel
                hidden = self._model.hidden(chunks[begin:end])[:, first:]
            if step.rows:
                group = slice(step.group.start - begin, step.group.stop - begin)
                scored = hidden[group, step.first - first : step.stop - first]
                yield from step.blocks(chunks, self._model.logits(scored, out))
