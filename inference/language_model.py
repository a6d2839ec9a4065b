"""What a model can be asked for, whatever runs it: llama.cpp a GGUF file, transformers a folder."""

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
"""Reads on in a sequence, int32[tokens], and gives the logits after the last of them, float32[vocabulary]; they are
valid until the next call."""


class LogitSource(Protocol):
    """Whatever has logits for chunks of tokens: a model, or a file that another run left."""

    @property
    def path(self) -> Path:
        """Where it was read from."""

    @property
    def vocab_size(self) -> int:
        """Logits in a row."""

    def used_tokens(self) -> int:
        """`vocab_size` less the tokens at its end that only fill the matrix up."""

    def scored_logits(self, chunks: np.ndarray, schedule: Schedule) -> Generator[LogitBlock, None, None]:
        """Run every chunk and yield the logits of its scored positions, in the order of the schedule.

        Args:
            chunks: int32[chunks, length], BOS in its place.
            schedule: of that shape, for a vocabulary of at least this size.

        Raises:
            SourceError: it cannot be run.
        """


class LanguageModel(LogitSource, Protocol):
    """A loaded model, to be used in a `with` block."""

    @property
    def threads(self) -> int:
        """Threads for the model, and for whoever works on its logits."""

    @property
    def trained_context(self) -> int:
        """Tokens of context that it was trained on."""

    @property
    def vocabulary(self) -> LlamaVocabulary:
        """Its vocabulary in llama.cpp, whatever runs the weights: tokens, their spelling, the chat template."""

    @property
    def provenance(self) -> Metadata:
        """What it says of itself: the `general.*` keys of GGUF."""

    @property
    def in_memory(self) -> bool:
        """Whether all of its weights stay in memory. Only then can it generate text: every token takes all of them."""

    def reader(self, length: int) -> AbstractContextManager[ReadOn]:
        """Working memory for one sequence, which is read part by part.

        Args:
            length: the most tokens in it.

        Raises:
            SourceError: it cannot be run.
        """

    def likeliest(self, tokens: np.ndarray, first: int) -> np.ndarray:
        """The token that is likeliest after each position of a sequence from `first` on.

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
    """How many logits of a row to compare: all, less the padding that only some of the models have.

    Raises:
        UsageError: the models have vocabularies of different sizes.
    """
    smallest = min(models, key=lambda model: model.vocab_size)
    for model in models:
        if model.used_tokens() > smallest.vocab_size:
            raise UsageError(
                f"{model.path} has a vocabulary of {model.used_tokens()} tokens, "
                f"{smallest.path} one of {smallest.vocab_size}",
                "compare models of one vocabulary",
            )
    return smallest.vocab_size
