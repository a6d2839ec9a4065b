"""The Hugging Face layout: a folder with config.json, safetensors shards and a tokenizer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mconv.convert.containers.safetensors import read_tensors
from mconv.convert.documents import read_object
from mconv.convert.errors import FormatError, MconvError, ShapeError, SourceError
from mconv.convert.families import family_of_class
from mconv.convert.families.matching import Mapped, dropped, fused_parts, fused_tensor
from mconv.convert.families.table import Family, FusedTensor
from mconv.convert.layouts.hf.names import CONFIG, INDEX
from mconv.convert.layouts.hf.sidecars import find_sidecars, read_sidecars
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.model.fields import EXPERTS, FFN
from mconv.convert.model.provenance import read_provenance
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.nodes import FLOAT_DTYPES, FileTensor, Tensor
from mconv.convert.tokenizer import Vocabulary, read_vocabulary


def open_hf(folder: Path) -> Checkpoint:
    """Open a Hugging Face folder. Only headers and configuration are read.

    Raises:
        SourceError: files are missing, truncated or contradict each other.
        FormatError: a file breaks the rules of its format.
        MappingError: the architecture is not supported, or a tensor has no place in its family.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder", "give the folder that contains config.json and the weights")
    config = read_object(folder / CONFIG)
    model = read_model_config(config)
    return hf_checkpoint(folder, config, model, read_shards(folder))


def hf_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    model: tuple[Family, ModelSpec],
    shards: tuple[list[FileTensor], list[MconvError]],
) -> Checkpoint:
    """The checkpoint in a folder whose parts have been read; see `open_hf`.

    Args:
        config: the content of config.json.
        model: the result of `read_model_config`.
        shards: the result of `read_shards`.

    Raises:
        SourceError, FormatError, MappingError: the first fault of the shards.
    """
    (family, spec), (stored, damage) = model, shards
    mapped, reasons = map_shards(family, spec, stored)
    for error in (*damage, *mapped.faults.values()):
        raise error
    sidecars = find_sidecars(folder)

    @cache
    def vocabulary() -> Vocabulary:
        return read_vocabulary(folder, spec.vocab)

    return Checkpoint(
        layout="hf",
        path=folder,
        spec=spec,
        tensors=mapped.tensors,
        vocabulary=vocabulary,
        files=(folder / INDEX, *sidecars.values(), *{tensor.file.path for tensor in stored}),
        sidecars=lambda: read_sidecars(sidecars),
        provenance=read_provenance(folder, config, mapped.tensors.values(), spec),
        notes=tuple(_left_out(reasons)),
    )


def read_model_config(config: Mapping[str, Any]) -> tuple[Family, ModelSpec]:
    """Family and spec of the model, from config.json.

    Raises:
        SourceError, MappingError: the architecture is not supported, or the weights are quantized.
    """
    family = family_of_class(architecture(config))
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise SourceError(
            f"config.json: the weights are already quantized ({method})",
            "start from the 16-bit checkpoint, or dequantize it with transformers first",
        )
    return family, family.read_config(config)


def architecture(config: Mapping[str, Any]) -> str:
    """The transformers class of the model, from config.json.

    Raises:
        SourceError: config.json does not name a class.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise SourceError(
            "config.json: architectures is missing",
            "add the transformers class of the model, such as MistralForCausalLM",
        )
    return names[0]


def read_shards(folder: Path) -> tuple[list[FileTensor], list[MconvError]]:
    """Every tensor on disk, in the same order as other converters: files by name, then tensors by name.

    Returns:
        The tensors, and the faults of the files: shards that cannot be read, and contradictions between index and
        shards.

    Raises:
        SourceError: there are no weights.
        FormatError: the index is not valid.
    """
    index = folder / INDEX
    weight_map = _read_weight_map(index) if index.is_file() else None
    shards = sorted(
        folder.glob("model*.safetensors") if weight_map is None else map(folder.joinpath, set(weight_map.values()))
    )
    if not shards:
        pickled = any(folder.glob("pytorch_model*.bin"))
        hint = "save it as safetensors first: .bin files can run code" if pickled else "download the weights"
        raise SourceError(f"{folder}: no model*.safetensors", hint)
    stored: list[FileTensor] = []
    damage: list[MconvError] = []
    for number, path in enumerate(shards):
        try:
            stored += read_tensors(path, number)
        except MconvError as error:
            damage.append(error)
    if weight_map is not None and not damage:
        damage += _contradictions(weight_map, stored)
    return stored, damage


def _read_weight_map(index: Path) -> dict[str, str]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise FormatError(f"{index.name}: weight_map is missing or not a table of file names", "download it again")
    for name in set(weight_map.values()):
        # The Hub's cache stores files as links to blobs in another folder; a path in the index is an attack.
        if Path(name).name != name or name in ("", ".", ".."):
            raise SourceError(f"{index.name}: {name!r} is outside the folder", "do not use this checkpoint")
    return weight_map


def _contradictions(weight_map: Mapping[str, str], stored: Iterable[FileTensor]) -> Iterator[SourceError]:
    """Differences between the index and the content of the shards."""
    found = {tensor.name: tensor.file.path.name for tensor in stored}
    hint = "the shards and the index belong to different uploads; download them again"
    for name, shard in weight_map.items():
        if found.get(name) != shard:
            yield SourceError(f"{INDEX}: {name} should be in {shard}, but is not", hint)
    for name, shard in found.items():
        if name not in weight_map:
            yield SourceError(f"{shard}: {name} is not in {INDEX}", hint)


def map_shards(family: Family, spec: ModelSpec, stored: Iterable[FileTensor]) -> tuple[Mapped, dict[str, int]]:
    """Tensors by canonical name, and how many were left out for each reason.

    Missing or unknown tensors are not reported here: the target checks which tensors a model must have.
    """
    tensors: dict[str, Tensor] = {}
    faults: dict[str, MconvError] = {}
    reasons: dict[str, int] = {}
    for tensor in stored:
        reason = dropped(family, tensor.name)
        if reason is not None:
            reasons[reason] = reasons.get(reason, 0) + 1
            continue
        # In models with a vision part, the names of the text model have this prefix.
        name = tensor.name.replace("language_model.", "", 1)
        parts = _split(family, spec, name, tensor)
        faults |= parts.faults
        for part in parts.tensors.values():
            if part.name in tensors:
                faults[part.name] = SourceError(
                    f"tensor {part.name} is stored twice", "remove one of the shards that contain it"
                )
            elif part.dtype not in FLOAT_DTYPES:
                faults[part.name] = SourceError(
                    f"tensor {tensor.name} has type {part.dtype}, which is not supported",
                    f"supported: {', '.join(FLOAT_DTYPES)}; dequantize or cast the checkpoint first",
                )
            else:
                tensors[part.name] = part
    return Mapped(tensors, faults), reasons


def _split(family: Family, spec: ModelSpec, name: str, tensor: FileTensor) -> Mapped:
    """The canonical tensors that a stored tensor contains: usually just itself."""
    found = fused_tensor(family, name)
    if found is not None:
        return _split_fused(family, found[0], spec, found[1], tensor)
    return Mapped({name: tensor.slice_rows(name, 0, tensor.shape)}, {})


def _split_fused(family: Family, fused: FusedTensor, spec: ModelSpec, layer: int, tensor: FileTensor) -> Mapped:
    heights = {name: spec.shape_of(role)[0] for name, role in fused_parts(family, fused, layer, spec).items()}
    height = sum(spec.shape_of(role)[0] for role in fused.roles)
    expected = (spec.experts, height) if fused.roles[0].is_expert else (height,)
    if tensor.shape[:-1] != expected:
        error = ShapeError(
            f"tensor {tensor.name} has shape {list(tensor.shape)}, but config.json makes it {[*expected, '...']}",
            f"check {EXPERTS.member} and {FFN.member} in config.json against the weights",
            tensor.name,
            tensor.shape,
            (*expected, *tensor.shape[-1:]),
        )
        return Mapped({}, dict.fromkeys(heights, error))
    starts = itertools.accumulate(heights.values(), initial=0)
    parts = zip(heights.items(), starts, strict=False)
    return Mapped(
        {name: tensor.slice_rows(name, start, (height, tensor.shape[-1])) for (name, height), start in parts}, {}
    )


def _left_out(reasons: Mapping[str, int]) -> Iterable[str]:
    return (f"left out {count} tensor{'s'[: count != 1]}: {reason}" for reason, count in reasons.items())
