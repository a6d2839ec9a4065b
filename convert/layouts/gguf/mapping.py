"""Map the tensors of a model to those of a GGUF file, and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from mconv.convert.errors import MappingError, MconvError, ShapeError
from mconv.convert.families.matching import (
    Mapped,
    canonical_names,
    in_layers,
    known_names,
    take_sources,
    unknown_tensor,
)
from mconv.convert.families.table import Family, Named
from mconv.convert.layouts.gguf.names import NAMES, name_of, row_order
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.nodes import FileTensor, Tensor, row_count
from mconv.convert.tensors.orders import Inverse, part_of
from mconv.convert.tensors.rows import ArrangedTensor, Rows, Target

_RANKS = {role: rank for rank, role in enumerate(NAMES)}


def gguf_targets(family: Family, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> list[Target]:
    """Every tensor of the GGUF form, in the order of the source.

    Args:
        tensors: canonical name to tensor, without the dropped ones.

    Raises:
        MappingError: a tensor is missing, is unknown to the family, has a shape that contradicts the spec, or has a
            role that GGUF does not support.
    """
    unused = dict(tensors)
    placed: list[tuple[tuple[tuple[int, int], int], Target]] = []
    for layer, entries in in_layers(family, spec):
        places: dict[Role | None, tuple[int, int]] = defaultdict(lambda: (-1, -1))
        found = []
        for named in entries:
            sources = take_sources(named, layer or 0, spec, tensors, unused)
            if not sources:
                continue
            # Like other converters, write the stacks of a layer together, after the last of their sources.
            group = None if named.role.is_expert else named.role
            places[group] = max(places[group], max(source.position for source in sources))
            found.append((group, _target(named, family, layer, spec, sources)))
        placed += [((places[group], _RANKS[role]), target) for group, (role, target) in found]
    if unused:
        raise unknown_tensor(next(iter(unused)), len(unused), family, known_names(family, spec))
    return [target for _, target in sorted(placed, key=lambda item: item[0])]


def _target(
    named: Named, family: Family, layer: int | None, spec: ModelSpec, sources: list[Tensor]
) -> tuple[Role, Target]:
    role, shape = named.role, sources[0].shape
    if role.is_expert:
        shape = (len(sources), *shape)
    rows = Rows(tuple(sources), row_order(role, family, spec))
    return role, Target(name_of(role, layer), shape, rows, role)


def canonical_tensors(family: Family, spec: ModelSpec, stored: Mapping[str, FileTensor]) -> dict[str, Tensor]:
    """The inverse of `gguf_targets`: the tensors of a GGUF file by canonical name, in the order of the family's table.

    Args:
        stored: GGUF name to tensor.

    Raises:
        MappingError: a tensor is missing, is unknown to the family, or has a shape that contradicts the spec.
    """
    mapped = map_tensors(family, spec, stored)
    if mapped.faults:
        raise next(iter(mapped.faults.values()))
    if mapped.unknown:
        known = [name_of(named.role, layer) for named in family.tensors for layer in range(spec.layers)]
        raise unknown_tensor(mapped.unknown[0], len(mapped.unknown), family, known)
    return mapped.tensors


def map_tensors(family: Family, spec: ModelSpec, stored: Mapping[str, FileTensor]) -> Mapped:
    """Like `canonical_tensors`, for a file in which tensors may be missing, unknown or of the wrong shape.

    Args:
        stored: GGUF name to tensor.
    """
    unused = dict(stored)
    tensors: dict[str, Tensor] = {}
    faults: dict[str, MconvError] = {}
    for layer, entries in in_layers(family, spec):
        for named in entries:
            name = name_of(named.role, layer)
            tensor = unused.pop(name, None)
            if tensor is not None:
                try:
                    tensors |= {part.name: part for part in _parts(named, family, layer or 0, spec, tensor)}
                except ShapeError as error:
                    faults |= dict.fromkeys(canonical_names(named, layer or 0, spec), error)
            elif named.required(spec):
                missing = MappingError(
                    f"tensor {name} is missing from the file",
                    "download the file again; very old files that store each expert separately must be converted again",
                )
                faults |= dict.fromkeys(canonical_names(named, layer or 0, spec), missing)
    return Mapped(tensors, faults, tuple(unused))


def _parts(named: Named, family: Family, layer: int, spec: ModelSpec, tensor: FileTensor) -> Iterator[Tensor]:
    """The canonical tensors that one tensor of a GGUF file holds."""
    shape = spec.shape_of(named.role)
    expected = (spec.experts, *shape) if named.role.is_expert else shape
    if tensor.shape != expected:
        raise ShapeError(
            f"tensor {tensor.name} has shape {list(tensor.shape)}, but the file's metadata makes it {list(expected)}",
            "the file is damaged, or it was edited; download it again",
            tensor.name,
            tensor.shape,
            expected,
        )
    arranged = row_order(named.role, family, spec)
    order = None if arranged is None else Inverse((arranged,))
    height = row_count(shape)
    for place, name in enumerate(canonical_names(named, layer, spec)):
        start = place * height
        if order is None:
            yield tensor.slice_rows(name, start, shape)
        else:
            yield ArrangedTensor(name, shape, Rows((tensor,), part_of(order, start, start + height)), tensor.position)
