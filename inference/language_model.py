"""The interface of a loaded model, independent of the runtime: llama.cpp for a GGUF file, transformers for a folder."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from mconv.convert.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from mconv.convert.model.metadata import Metadata
    from mconv.inference.llama_vocabulary import LlamaVocabulary
    from mconv.inference.schedule import LogitBlock, Schedule

ReadOn = Callable[["np.ndarray"], "np.ndarray"]
"""Reads the next tokens of a sequence, int32[tokens], and returns the logits after the last one, float32[vocabulary],
which are valid until the next call."""


class LogitSource(Protocol):
    """A source of logits for chunks of tokens: a model, or a file that another run saved."""

    @property
    def path(self) -> Path:
        """The path that it was read from."""

    @property
    def vocab_size(self) -> int:
        """Number of logits per row."""

    def used_tokens(self) -> int:
        """`vocab_size` without the padding tokens at the end of the vocabulary."""

    def scored_logits(self, chunks: np.ndarray, schedule: Schedule) -> Generator[LogitBlock, None, None]:
        """Run every chunk and yield the logits of its scored positions, in the order of the schedule.

        Args:
            chunks: int32[chunks, length], including BOS.
            schedule: a schedule of that shape, for a vocabulary of at least this size.

        Raises:
            SourceError: it cannot be run.
        """


class LanguageModel(LogitSource, Protocol):
    """A loaded model, to be used in a `with` block."""

    @property
    def threads(self) -> int:
        """Number of threads for the model, and for the caller's work on its logits."""

    @property
    def trained_context(self) -> int:
        """The context length, in tokens, of its training."""

    @property
    def vocabulary(self) -> LlamaVocabulary:
        """Its vocabulary in llama.cpp, for every runtime: tokens, their spelling, the chat template."""

    @property
    def provenance(self) -> Metadata:
        """Its provenance: the `general.*` keys of GGUF."""

    @property
    def in_memory(self) -> bool:
        """Whether all of its weights stay in memory. Only then can it generate text: every token needs all weights."""

    def reader(self, length: int) -> AbstractContextManager[ReadOn]:
        """A context for one sequence, which is read part by part.

        Args:
            length: maximum number of tokens in the sequence.

        Raises:
            SourceError: it cannot be run.
        """

    def likeliest(self, tokens: np.ndarray, first: int) -> np.ndarray:
        """The most likely token after each position of a sequence, from `first` on.

        Args:
            tokens: int32[tokens].

        Returns:
            int64[tokens - first].
        """

    def __enter__(self) -> LanguageModel: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def common_vocabulary(models: Sequence[LogitSource]) -> int:
    """How many logits per row to compare: all, without the padding that only some of the models have.

    Raises:
        UsageError: the models have vocabularies of different sizes.
    """
    smallest = min(models, key=lambda model: model.vocab_size)
    for model in models:
        if model.used_tokens() > smallest.vocab_size:
            raise UsageError(
                f"{model.path} has a vocabulary of {model.used_tokens()} tokens, "
                f"but {smallest.path} has one of {smallest.vocab_size}",
                "compare models with the same vocabulary",
            )
    return smallest.vocab_size
