"""A subject of checks: an artifact or the reference, opened once for all checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mconv.convert.containers.gguf import GgufFile
from mconv.convert.containers.gguf_split import read_gguf_model
from mconv.convert.documents import read_object
from mconv.convert.errors import MconvError, SourceError, UsageError
from mconv.convert.families import family_of_class
from mconv.convert.layouts import detect_layout, layouts, options_for
from mconv.convert.layouts.gguf.reader import gguf_checkpoint
from mconv.convert.layouts.hf.names import CONFIG
from mconv.convert.layouts.hf.reader import architecture, hf_checkpoint, read_model_config, read_shards
from mconv.convert.layouts.layout import ReadOptions
from mconv.convert.layouts.megatron.reader import (
    Description,
    Saved,
    megatron_checkpoint,
    read_description,
    read_saved,
)
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.tensors.nodes import FileTensor
from mconv.convert.tokenizer import read_vocabulary
from mconv.convert.tokenizer.template import read_chat_templates
from mconv.inference.header import check_header
from mconv.inference.open_model import layout_of
from mconv.validate.tokens.sources import TokenizerSource, gguf_templates, gguf_vocabulary

if TYPE_CHECKING:
    from mconv.inference.language_model import LanguageModel
    from mconv.inference.llama_vocabulary import LlamaVocabulary


class Subject:
    """A model in any layout. Each part is read on first use, and cached.

    Use it in a `with` block, or get several with `open_subjects`: it is closed at the end.

    Attributes:
        path: the path as given.
        layout: "hf", "megatron" or "gguf".

    Args:
        path: a GGUF file (of a split model its first part), a Hugging Face folder, or a Megatron folder.
        reading: read options of layouts, see `open_checkpoint`; those of other layouts than the path's are left out.
        threads: threads that run the model; None takes every usable core.

    Every property raises SourceError, FormatError or MappingError if its part cannot be read, and OSError for a file
    that is missing or not readable.
    """

    def __init__(self, path: Path, *, reading: ReadOptions | None = None, threads: int | None = None) -> None:
        self.path = path
        self.layout = layout_of(path)
        self.reading = options_for(path, **(reading or {})) if path.exists() else {}
        self._threads = threads
        self._model: LanguageModel | None = None
        self._vocabulary_alone: LlamaVocabulary | None = None

    def __enter__(self) -> Subject:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file, which llama.cpp runs; transformers runs all other layouts."""
        return self.layout == "gguf"

    @cached_property
    def header(self) -> GgufFile:
        """The header of a GGUF file, all parts of a split one together."""
        self.path.stat()  # raises an error with the file name if the file is missing
        return read_gguf_model(self.path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config.json of a Hugging Face folder."""
        return read_object(self.path / CONFIG)

    @cached_property
    def shards(self) -> tuple[list[FileTensor], list[MconvError]]:
        """The tensors in a Hugging Face folder and the faults of its files; see `read_shards`."""
        return read_shards(self.path)

    @cached_property
    def saved(self) -> Saved:
        """The index and the settings in a Megatron folder."""
        return read_saved(self.path)

    @cached_property
    def description(self) -> Description:
        """What a Megatron folder is a model of."""
        return read_description(self.saved, **self.reading)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The whole model by canonical names; only headers and configuration are read."""
        detect_layout(self.path)  # says that there is nothing, where there is nothing
        if self.is_gguf:
            return gguf_checkpoint(self.path, self.header)
        if self.layout == "megatron":
            opened = megatron_checkpoint(self.saved, self.description, card=not self.reading)
        else:
            opened = hf_checkpoint(self.path, self.config, read_model_config(self.config), self.shards)
        return replace(opened, vocabulary=lambda: self.tokenizer.vocabulary)

    @cached_property
    def tokenizer(self) -> TokenizerSource:
        """The tokenizer and the chat templates; does not need the weights."""
        if not self.path.exists():
            raise SourceError(f"{self.path}: no such file or folder", "give a folder of a checkpoint, or a GGUF file")
        folder: Path | None = None
        if self.is_gguf:
            vocabulary = gguf_vocabulary(self.path.name, self.header)
            templates = gguf_templates(self.header.metadata)
        else:
            if self.layout == "megatron":
                folder, spec = self.description.tokenizer, self.description.spec
            else:
                folder, spec = self.path, family_of_class(architecture(self.config)).read_config(self.config)
            vocabulary = read_vocabulary(folder, spec.vocab)
            # Do not use the template of the vocabulary: it is generated if the checkpoint has none.
            templates = read_chat_templates(folder)
        return TokenizerSource(self.path, folder, vocabulary, templates, self.llama_vocabulary)

    def llama_vocabulary(self) -> LlamaVocabulary:
        """The vocabulary in llama.cpp: from the model if it is loaded, otherwise loaded separately."""
        if self._model is not None:
            return self._model.vocabulary
        if self._vocabulary_alone is None:
            from mconv.inference.llama_vocabulary import LlamaVocabulary

            self._vocabulary_alone = (
                LlamaVocabulary.load(self.path, self.header.metadata)
                if self.is_gguf
                else LlamaVocabulary.from_value(self.tokenizer.vocabulary, self.path.name)
            )
        return self._vocabulary_alone

    def check_runnable(self) -> None:
        """Check the headers, so that problems are reported before any model is run."""
        if self.is_gguf:
            check_header(self.path, self.header.metadata)
        else:
            _ = self.checkpoint

    def model(self) -> LanguageModel:
        """The model, loaded once; it stays loaded until `unload`.

        Raises:
            OSError, SourceError, FormatError, MappingError: it cannot be loaded.
            UsageError: torch or transformers, which are needed for folders, are not installed.
        """
        if self._model is None:
            self._model = self._load()
            self._vocabulary_alone = None  # the model has its own
        return self._model

    def _load(self) -> LanguageModel:
        if self.is_gguf:
            from mconv.inference.llama_cpp_model import LlamaCppModel

            return LlamaCppModel(self.path, self._threads, self.header.metadata)
        from mconv.inference.transformers_model import TransformersModel

        return TransformersModel(self.checkpoint, self._threads)

    def unload(self) -> None:
        """Free the memory of the model. The next call of `model` loads it again."""
        if self._model is not None:
            self._model.__exit__(None, None, None)
            self._model = None

    def close(self) -> None:
        """Unload the model and drop everything that was read. Later uses read it again."""
        self.unload()
        self._vocabulary_alone = None
        for name, member in vars(Subject).items():
            if isinstance(member, cached_property):
                self.__dict__.pop(name, None)


@contextmanager
def open_subjects(
    paths: Sequence[Path], *, reading: ReadOptions | None = None, threads: int | None = None
) -> Iterator[list[Subject]]:
    """A subject for each path, in order; the same subject if a path is given twice. All are closed at the end.

    Args:
        reading, threads: see `Subject`.

    Raises:
        UsageError: a read option that the layout of none of them has.

    Example:
        >>> with open_subjects([Path("model/"), Path("model-Q4_K_M.gguf")]) as (reference, artifact):
        ...     compare_weights(artifact, reference)
    """
    opened = {path: Subject(path, reading=reading, threads=threads) for path in paths}
    for name, value in (reading or {}).items():
        if value is not None and not any(name in subject.reading for subject in opened.values()):
            takers = " or ".join(layout.title for layout in layouts().values() if layout.takes(name))
            raise UsageError(f"none of these is {takers}", f"leave --{name.replace('_', '-')} out")
    try:
        yield [opened[path] for path in paths]
    finally:
        for subject in opened.values():
            subject.close()
