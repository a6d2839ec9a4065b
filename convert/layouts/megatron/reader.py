"""Read the Megatron-Core layout: open a checkpoint of any parallelism as one model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mconv.convert.containers.torch_dist import INDEX, ChunkedTensor, read_index
from mconv.convert.documents import read_object, read_text
from mconv.convert.errors import FormatError, SourceError
from mconv.convert.families import family_of_class
from mconv.convert.families.matching import dropped
from mconv.convert.families.table import Family
from mconv.convert.layouts.hf.names import CONFIG, VOCABULARY_FILES
from mconv.convert.layouts.hf.reader import architecture
from mconv.convert.layouts.hf.sidecars import find_sidecars, read_sidecars
from mconv.convert.layouts.megatron import RANK_FOLDERS, TRACKER
from mconv.convert.layouts.megatron.arguments import (
    COMMON,
    RUN_CONFIG,
    check_configuration,
    read_arguments,
    settings_of,
    spec_of,
)
from mconv.convert.layouts.megatron.keys import canonical_key, key_of
from mconv.convert.layouts.megatron.mapping import canonical_tensors
from mconv.convert.layouts.megatron.ranks import read_ranks
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.model.fields import ATTENTION_BIAS, EXPERTS, MLP_BIAS, VOCAB, Field
from mconv.convert.model.provenance import read_provenance
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tokenizer import Vocabulary, read_vocabulary

_TRAINING_STATE = re.compile(
    r"^(chained_\d+\.)?(optimizer|opt_param_scheduler|rng_state|rerun_state_machine_state|common_state)\b"
)
# The families to assume for a run without a configuration.
_DENSE, _MIXTURE = "MistralForCausalLM", "MixtralForCausalLM"
_BIAS = re.compile(r"\.(self_attention|mlp)\.linear_\w+\.bias")


def open_megatron(folder: Path, hf_config: Path | None = None) -> Checkpoint:
    """Open a checkpoint in the torch_dist or the legacy torch format.

    Only its index, its settings and the configuration are read.

    Args:
        folder: the folder that contains the tracker file, or the folder of one iteration.
        hf_config: a folder with config.json and the tokenizer, or a config.json beside its tokenizer. Default: look for
            them beside the weights.

    Raises:
        SourceError: files are missing or truncated, or nothing describes the model.
        FormatError: a file breaks the rules of its format, or a pickle uses a name that is not allowed.
        MappingError: the model is not supported, or weights and configuration contradict each other.
    """
    saved = read_saved(folder)
    return megatron_checkpoint(saved, read_description(saved, hf_config), card=hf_config is None)


def megatron_checkpoint(saved: Saved, model: Description, *, card: bool) -> Checkpoint:
    """The checkpoint that a run saved, whose index and settings have been read; see `open_megatron`.

    Args:
        card: whether the README.md beside the configuration describes this checkpoint.

    Raises:
        MappingError: a tensor has no place in the family.
    """
    folder, spec = saved.folder, model.spec
    kept, notes = model_tensors(saved, model.family, spec)
    canonical = canonical_tensors(model.family, spec, kept)
    source, tokenizer = model.file.parent if model.file else folder, model.tokenizer
    padding = max(_padding(tensor, spec.vocab) for tensor in kept)
    if padding:
        notes.append(f"left out {padding} rows that pad the vocabulary of {spec.vocab}")

    @cache
    def vocabulary() -> Vocabulary:
        return read_vocabulary(tokenizer, spec.vocab)

    sidecars = find_sidecars(source, tokenizer, card=card)
    # The configuration file may have any name.
    sidecars |= {CONFIG: model.file} if model.file else {}
    settings = (folder / TRACKER, *(saved.iteration / name for name in (INDEX, COMMON, RUN_CONFIG)))
    weights = {chunk.blob.file.path for tensor in saved.tensors for chunk in tensor.chunks}
    return Checkpoint(
        layout="megatron",
        path=folder,
        spec=spec,
        tensors=canonical,
        vocabulary=vocabulary,
        sidecars=lambda: read_sidecars(sidecars),
        files=(*settings, *weights, *sidecars.values()),
        provenance=read_provenance(source, model.config, canonical.values(), spec),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class Saved:
    """The checkpoint that a run saved, before its model is identified.

    Attributes:
        folder: the path given by the user; iteration: the folder that contains the index.
        legacy: whether there is one file per rank.
        tensors: the tensors of the model, without the state of the run.
        arguments: the settings of the run.
        notes: information for the user.
    """

    folder: Path
    iteration: Path
    legacy: bool
    tensors: tuple[ChunkedTensor, ...]
    arguments: Mapping[str, Any]
    notes: tuple[str, ...]


def read_saved(folder: Path) -> Saved:
    """Read index and settings.

    Raises:
        SourceError, FormatError: see `open_megatron`.
    """
    iteration = _iteration(folder)
    legacy = any(iteration.glob(RANK_FOLDERS))
    if legacy:
        tensors, arguments = read_ranks(iteration)
    else:
        checkpoint = read_index(iteration)
        tensors, arguments = checkpoint.tensors, read_arguments(iteration, checkpoint)
    kept, notes = _without_state(tensors)
    return Saved(folder, iteration, legacy, tuple(kept), arguments, tuple(notes))


@dataclass(frozen=True)
class Description:
    """The model in a checkpoint.

    Attributes:
        family, spec: family and spec of the model.
        config: the content of config.json; only the architecture if the settings of the run provide the rest.
        file: the path of config.json; None if there is none.
        tokenizer: the folder of the tokenizer.
    """

    family: Family
    spec: ModelSpec
    config: Mapping[str, Any]
    file: Path | None
    tokenizer: Path


def read_description(saved: Saved, hf_config: Path | None = None) -> Description:
    """Find what the model is, in config.json or the settings of the run, and hold the two against each other.

    Args:
        hf_config: see `open_megatron`.

    Raises:
        SourceError, FormatError, MappingError: see `open_megatron`.
    """
    tokenizer = tokenizer_folder(saved.folder, hf_config)
    settings = settings_of(saved.arguments)
    known = {**settings.known, **_biases(saved.tensors)}
    file = _configuration(hf_config, _beside(saved.folder, saved.iteration))
    rows = _stored_vocabulary(saved.tensors)
    wanted = [*settings.unknown, *(VOCAB.megatron if VOCAB not in known and rows is None else ())] if not file else []
    wanted += ["the tokenizer"] if tokenizer is None else []
    if wanted or tokenizer is None:
        raise SourceError(
            f"{saved.folder}: the checkpoint does not contain {', '.join(wanted)}",
            "give --hf-config a folder with the config.json and the tokenizer of the model",
        )
    if file is None:
        config: Mapping[str, Any] = {"architectures": [_MIXTURE if EXPERTS in known else _DENSE]}
        family = family_of_class(architecture(config))
        spec = spec_of({VOCAB: rows, **known}, family.name)
    else:
        config = read_object(file)
        family = family_of_class(architecture(config))
        spec = family.read_config(config)
        check_configuration(known, spec)
    return Description(family, spec, config, file, tokenizer)


def model_tensors(saved: Saved, family: Family, spec: ModelSpec) -> tuple[list[ChunkedTensor], list[str]]:
    """The tensors that belong to a model of the family, and notes about those left out."""
    stored, notes = list(saved.tensors), list(saved.notes)
    if saved.legacy and spec.tied:
        # The last pipeline stage has a second copy of the embedding, as its output matrix.
        stored = [tensor for tensor in stored if canonical_key(tensor.key) != key_of(Role.OUTPUT)]
    kept = [tensor for tensor in stored if dropped(family, tensor.key.removeprefix("model.")) is None]
    if len(kept) < len(stored):
        notes.append(f"left out {len(stored) - len(kept)} tensors: the vision tower and its projector")
    return kept, notes


def tokenizer_folder(folder: Path, hf_config: Path | None = None) -> Path | None:
    """The folder of a checkpoint's tokenizer; None if there is none.

    Raises:
        SourceError, FormatError: it is not a Megatron checkpoint.
    """
    places = (_folder_of(hf_config),) if hf_config else _beside(folder, _iteration(folder))
    return _first_with(VOCABULARY_FILES, places)


def _beside(folder: Path, iteration: Path) -> tuple[Path, ...]:
    """The folders beside the weights that may contain configuration and tokenizer."""
    return (iteration, folder, iteration.parent, iteration / "hf", iteration / "tokenizer")


def _iteration(folder: Path) -> Path:
    """The folder that contains the index."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder", "give the folder of a Megatron checkpoint")
    found = folder
    if not (folder / INDEX).is_file() and (folder / TRACKER).is_file():
        word = read_text(folder / TRACKER).strip()
        if word != "release" and not re.fullmatch(r"\d{1,12}", word):
            raise FormatError(
                f"{TRACKER}: {word[:40]!r} is not an iteration", "the file must contain a number, or the word release"
            )
        found = folder / (word if word == "release" else f"iter_{int(word):07d}")
    if (found / INDEX).is_file() or any(found.glob(RANK_FOLDERS)):
        return found
    saved = next(iter(sorted(found.glob("iter_*"))), None)
    raise SourceError(
        f"{found} contains neither {INDEX}, nor {RANK_FOLDERS}, nor {TRACKER}",
        f"give the folder of one iteration, like {saved}" if saved else "give the folder of a Megatron-Core checkpoint",
    )


def _without_state(tensors: Mapping[str, ChunkedTensor]) -> tuple[list[ChunkedTensor], list[str]]:
    """The tensors of the model, and a note about those left out."""
    kept, state = [], 0
    for key, tensor in tensors.items():
        if _TRAINING_STATE.match(key):
            state += 1
        elif not key.endswith("._extra_state"):
            kept.append(tensor)
    return kept, [f"left out {state} tensors: the state of the optimizer and of the run"] if state else []


def _folder_of(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _first_with(patterns: tuple[str, ...], folders: tuple[Path, ...]) -> Path | None:
    return next((folder for folder in folders for pattern in patterns if any(folder.glob(pattern))), None)


def _configuration(hf_config: Path | None, beside: tuple[Path, ...]) -> Path | None:
    """The file that describes the model; None if there is none."""
    if hf_config is not None:
        return hf_config if hf_config.is_file() else hf_config / CONFIG
    place = _first_with((CONFIG,), beside)
    return place / CONFIG if place else None


def _biases(stored: Iterable[ChunkedTensor]) -> dict[Field, bool]:
    """Which halves of a layer have biases; the settings of a run do not distinguish them."""
    halves = {match[1] for tensor in stored if (match := _BIAS.search(tensor.key))}
    return {ATTENTION_BIAS: "self_attention" in halves, MLP_BIAS: "mlp" in halves}


def _stored_vocabulary(stored: Iterable[ChunkedTensor]) -> int | None:
    """Rows of the embedding, including padding."""
    return next((tensor.shape[0] for tensor in stored if _is_embedding(tensor)), None)


def _is_embedding(tensor: ChunkedTensor) -> bool:
    return canonical_key(tensor.key) == key_of(Role.TOKEN_EMBEDDING)


def _padding(tensor: ChunkedTensor, vocab: int) -> int:
    return tensor.shape[0] - vocab if _is_embedding(tensor) else 0
