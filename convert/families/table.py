"""What a family file is made of: rows that name a tensor in each layout, and drops that say why one is left out."""

from __future__ import annotations

import difflib
import fnmatch
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mconv.convert.errors import MappingError, MconvError, ShapeError
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.nodes import FileTensor, Tensor, row_count
from mconv.convert.tensors.orders import Inverse, RowOrder, part_of
from mconv.convert.tensors.rows import ArrangedTensor, Rows, Target


def always(_: ModelSpec) -> bool:
    """A tensor that every model of the family has."""
    return True


@dataclass(frozen=True)
class Row:
    """One tensor of a family.

    Attributes:
        hf: canonical (Hugging Face) name; `{layer}` and `{expert}` stand for numbers.
        gguf: name in a GGUF file. Where `hf` has an expert and this has none, the experts are stacked.
        shape: axes of one Hugging Face tensor, as `ModelSpec.dimension` names them.
        arrange: the order of the rows in GGUF, from the spec; None where it is Hugging Face's.
        required: whether a model with this spec must have the tensor.
        group: tensors of one layer and group stand side by side in a GGUF file, after the last of their sources. It is
            where the field's converters put stacked experts.
        megatron: key in a Megatron-Core checkpoint, with `{layer}` and `{expert}` where a stack of layers or experts
            has a leading axis. Rows that share a key are fused there.
        places: where the tensor's rows stand in the fused one, from the spec; None where they follow those of the rows
            before it under the same key, as up follows gate.
    """

    hf: str
    gguf: str
    shape: tuple[str, ...]
    arrange: Callable[[ModelSpec], RowOrder] | None = None
    required: Callable[[ModelSpec], bool] = always
    group: str = ""
    megatron: str = ""
    places: Callable[[ModelSpec], RowOrder] | None = None


@dataclass(frozen=True)
class Drop:
    """Source tensors that are left out, and why. The pattern is a shell-style wildcard over canonical names."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class FusedTensor:
    """Another spelling of several canonical tensors: one stored tensor, cut into runs of rows.

    Attributes:
        stored: name on disk; `{layer}` stands for a number. Its leading axis is the experts.
        parts: canonical names, in the order of their rows within each expert, with the axis that counts their rows.
    """

    stored: str
    parts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Family:
    """Models that share one table.

    Attributes:
        name: what `ModelSpec.family` says.
        classes: the names in `architectures` of config.json that belong here.
        read_config: from config.json to a spec; raises MappingError or SourceError.
        write_config: the other way: the members of config.json that say a spec, given the class the model is known to
            come from (empty where nobody knows). None where no such model can be written.
        rows, drops, cuts: the table.
        gguf_architecture: `general.architecture` of the GGUF files that are read as this family; None where they are
            another family's.
        mixture: whether those are the files with experts.
    """

    name: str
    classes: tuple[str, ...]
    read_config: Callable[[Mapping[str, object]], ModelSpec]
    rows: tuple[Row, ...]
    drops: tuple[Drop, ...] = ()
    fused_tensors: tuple[FusedTensor, ...] = ()
    write_config: Callable[[ModelSpec, str], dict[str, Any]] | None = None
    gguf_architecture: str | None = None
    mixture: bool = False


def gguf_targets(family: Family, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> list[Target]:
    """Every tensor of the GGUF form, in the order of the source.

    Args:
        tensors: canonical name to tensor, without the dropped ones.

    Raises:
        MappingError: a tensor is missing, is unknown to the family, or has a shape that the spec contradicts.
    """
    unused = dict(tensors)
    placed: list[tuple[tuple[tuple[int, int], int], Target]] = []
    for layer_rows in _by_layer(family.rows, spec):
        places: dict[str, tuple[int, int]] = defaultdict(lambda: (-1, -1))
        found = []
        for order, row, layer in layer_rows:
            sources = _take(row, layer, spec, tensors, unused)
            if not sources:
                continue
            place = max(source.position for source in sources)
            group = row.group or row.gguf
            places[group] = max(places[group], place)
            found.append((group, order, row, layer, sources))
        for group, order, row, layer, sources in found:
            placed.append(((places[group], order), _target(row, layer, spec, sources)))
    if unused:
        known = [name for row in family.rows for n in range(spec.layers) for name in source_names(row, n, spec)[:1]]
        raise _unknown(next(iter(unused)), len(unused), family, known)
    return [target for _, target in sorted(placed, key=lambda item: item[0])]


@dataclass(frozen=True)
class Mapped:
    """The tensors of a stored model under their canonical names, and why others are not among them.

    Attributes:
        tensors: canonical name to tensor.
        faults: canonical name to the reason why there is no such tensor: it is missing, has another shape
            (`ShapeError`), or cannot be read.
        unknown: stored names of tensors that the family has no place for.
    """

    tensors: dict[str, Tensor]
    faults: dict[str, MconvError]
    unknown: tuple[str, ...] = ()


def canonical_tensors(family: Family, spec: ModelSpec, stored: Mapping[str, FileTensor]) -> dict[str, Tensor]:
    """`gguf_targets` read backwards: the tensors of a GGUF file by canonical name, in the order of the table.

    Args:
        stored: GGUF name to tensor.

    Raises:
        MappingError: a tensor is missing, is unknown to the family, or has a shape that the spec contradicts.
    """
    mapped = map_tensors(family, spec, stored)
    if mapped.faults:
        raise next(iter(mapped.faults.values()))
    if mapped.unknown:
        known = [row.gguf.format(layer=layer) for row in family.rows for layer in range(spec.layers)]
        raise _unknown(mapped.unknown[0], len(mapped.unknown), family, known)
    return mapped.tensors


def map_tensors(family: Family, spec: ModelSpec, stored: Mapping[str, FileTensor]) -> Mapped:
    """`canonical_tensors` of a file that may have lost tensors, gained some, or hold some of another shape.

    Args:
        stored: GGUF name to tensor.
    """
    unused = dict(stored)
    tensors: dict[str, Tensor] = {}
    faults: dict[str, MconvError] = {}
    for layer_rows in _by_layer(family.rows, spec):
        for _, row, layer in layer_rows:
            name = row.gguf.format(layer=layer)
            tensor = unused.pop(name, None)
            if tensor is not None:
                try:
                    tensors |= {part.name: part for part in _parts(row, layer, spec, tensor)}
                except ShapeError as error:
                    faults |= dict.fromkeys(source_names(row, layer, spec), error)
            elif row.required(spec):
                missing = MappingError(
                    f"tensor {name} is missing from the file",
                    "get the file again; very old files that keep each expert apart have to be converted anew",
                )
                faults |= dict.fromkeys(source_names(row, layer, spec), missing)
    return Mapped(tensors, faults, tuple(unused))


def _parts(row: Row, layer: int, spec: ModelSpec, tensor: FileTensor) -> Iterable[Tensor]:
    """The canonical tensors that one tensor of a GGUF file holds."""
    shape = tuple(spec.dimension(axis) for axis in row.shape)
    expected = (spec.experts, *shape) if "{expert}" in row.hf else shape
    if tensor.shape != expected:
        raise ShapeError(
            f"tensor {tensor.name} has shape {list(tensor.shape)}, but the file's metadata makes it {list(expected)}",
            "the file is damaged, or it was edited; get it again",
            tensor.name,
            tensor.shape,
            expected,
        )
    order = None if row.arrange is None else Inverse((row.arrange(spec),))
    height = row_count(shape)
    for place, name in enumerate(source_names(row, layer, spec)):
        start = place * height
        if order is None:
            yield tensor.slice_rows(name, start, shape)
        else:
            yield ArrangedTensor(name, shape, Rows((tensor,), part_of(order, start, start + height)), tensor.position)


def dropped(family: Family, name: str) -> str | None:
    """The reason why the family leaves this tensor out, or None."""
    return next((drop.reason for drop in family.drops if fnmatch.fnmatchcase(name, drop.pattern)), None)


def _by_layer(rows: Iterable[Row], spec: ModelSpec) -> Iterable[list[tuple[int, Row, int]]]:
    numbered = list(enumerate(rows))
    yield [(order, row, 0) for order, row in numbered if "{layer}" not in row.hf]
    for layer in range(spec.layers):
        yield [(order, row, layer) for order, row in numbered if "{layer}" in row.hf]


def _take(
    row: Row, layer: int, spec: ModelSpec, tensors: Mapping[str, Tensor], unused: dict[str, Tensor]
) -> list[Tensor]:
    """The row's sources, checked and crossed off; empty where the tensor is absent and may be."""
    names = source_names(row, layer, spec)
    absent = [name for name in names if name not in tensors]
    if absent:
        if len(absent) == len(names) and not row.required(spec):
            return []
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise MappingError(
            f"tensor {absent[0]}{more} is missing from the checkpoint",
            "download every shard again; config.json may describe another model",
        )
    shape = tuple(spec.dimension(axis) for axis in row.shape)
    sources = [tensors[name] for name in names]
    for source in sources:
        unused.pop(source.name, None)
        if source.shape != shape:
            raise MappingError(
                f"tensor {source.name} has shape {list(source.shape)}, but config.json makes it {list(shape)}",
                "config.json and the weights belong to different models, or one of them is damaged",
            )
        if source.dtype != sources[0].dtype:
            raise MappingError(
                f"tensors {sources[0].name} ({sources[0].dtype}) and {source.name} ({source.dtype}) differ in type",
                "tensors that are stacked must have one type; save the checkpoint in a single dtype",
            )
    return sources


def source_names(row: Row, layer: int, spec: ModelSpec) -> list[str]:
    """Canonical names behind one row of the table in one layer: several where experts are stacked."""
    if "{expert}" in row.hf:
        return [row.hf.format(layer=layer, expert=expert) for expert in range(spec.experts)]
    return [row.hf.format(layer=layer)]


def _target(row: Row, layer: int, spec: ModelSpec, sources: list[Tensor]) -> Target:
    shape = sources[0].shape
    if "{expert}" in row.hf:
        shape = (len(sources), *shape)
    order = row.arrange(spec) if row.arrange else None
    return Target(row.gguf.format(layer=layer), shape, Rows(tuple(sources), order))


def _unknown(name: str, count: int, family: Family, known: Sequence[str]) -> MappingError:
    near = difflib.get_close_matches(name, known, n=1)
    more = f" and {count - 1} more" if count > 1 else ""
    nearest = f"; the nearest known one is {near[0]}" if near else ""
    return MappingError(
        f"tensor {name}{more} has no place in the {family.name} family{nearest}",
        "a tensor is never left out silently: remove it from the checkpoint if the model does not need it",
    )
