"""Check tensors, by canonical name, against the table of a family: which are required, and how to report faults."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mconv.convert.errors import MappingError, MconvError
from mconv.convert.families.table import Family, FusedTensor, Named
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.nodes import Tensor


@dataclass(frozen=True)
class Mapped:
    """The tensors of a stored model under their canonical names, and why others could not be matched.

    Attributes:
        tensors: canonical name to tensor.
        faults: canonical name to the reason why the tensor is unusable: it is missing, has another shape
            (`ShapeError`), or cannot be read.
        unknown: stored names of tensors that the family has no place for.
    """

    tensors: dict[str, Tensor]
    faults: dict[str, MconvError]
    unknown: tuple[str, ...] = ()


def dropped(family: Family, name: str) -> str | None:
    """Why the family leaves this tensor out, or None."""
    return next((drop.reason for drop in family.drops if fnmatch.fnmatchcase(name, drop.pattern)), None)


def canonical_names(named: Named, layer: int, spec: ModelSpec) -> list[str]:
    """The canonical names of a role in one layer: several if each expert has one."""
    if named.role.is_expert:
        return [named.name.format(layer=layer, expert=expert) for expert in range(spec.experts)]
    return [named.name.format(layer=layer)]


def in_layers(family: Family, spec: ModelSpec) -> Iterator[tuple[int | None, list[Named]]]:
    """The roles outside the layers, under None, then the roles of each layer."""
    yield None, [named for named in family.tensors if "{layer}" not in named.name]
    of_layer = [named for named in family.tensors if "{layer}" in named.name]
    for layer in range(spec.layers):
        yield layer, of_layer


def fused_tensor(family: Family, name: str) -> tuple[FusedTensor, int] | None:
    """The fused tensor that a stored name denotes, and its layer; None if the name is canonical or unknown."""
    for fused in family.fused_tensors:
        match = re.fullmatch(re.escape(fused.stored).replace(r"\{layer\}", r"(\d+)"), name)
        if match:
            return fused, int(match[1])
    return None


def fused_parts(family: Family, fused: FusedTensor, layer: int, spec: ModelSpec) -> dict[str, Role]:
    """The canonical names of the parts of a fused tensor, in the order of their rows."""
    entries = [named for role in fused.roles if (named := family.named(role)) is not None]
    experts = spec.experts if fused.roles[0].is_expert else 1
    return {named.name.format(layer=layer, expert=expert): named.role for expert in range(experts) for named in entries}


def take_sources(
    named: Named, layer: int, spec: ModelSpec, tensors: Mapping[str, Tensor], unused: dict[str, Tensor]
) -> list[Tensor]:
    """Check the tensors of a role in one layer and remove them from those left; empty if they are absent and optional.

    Raises:
        MappingError: some are missing, or differ in type, or have a shape that the spec contradicts.
    """
    names = canonical_names(named, layer, spec)
    absent = [name for name in names if name not in tensors]
    if absent:
        if len(absent) == len(names) and not named.required(spec):
            return []
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise MappingError(
            f"tensor {absent[0]}{more} is missing from the checkpoint",
            "download every shard again; config.json may describe another model",
        )
    shape = spec.shape_of(named.role)
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


def known_names(family: Family, spec: ModelSpec) -> Iterable[str]:
    """One canonical name for each role and layer, for `unknown_tensor`."""
    for named in family.tensors:
        for layer in range(spec.layers):
            yield from canonical_names(named, layer, spec)[:1]


def unknown_tensor(name: str, count: int, family: Family, known: Iterable[str]) -> MappingError:
    """The error for tensors that do not belong to a family.

    Args:
        name: the first of them; count: their number.
        known: names to suggest from.
    """
    near: Sequence[str] = difflib.get_close_matches(name, list(known), n=1)
    more = f" and {count - 1} more" if count > 1 else ""
    nearest = f"; the nearest known one is {near[0]}" if near else ""
    return MappingError(
        f"tensor {name}{more} has no place in the {family.name} family{nearest}",
        "a tensor is never left out silently: remove it from the checkpoint if the model does not need it",
    )
