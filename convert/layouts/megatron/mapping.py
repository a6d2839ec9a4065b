"""Map the tensors of a model to those of a Megatron-Core checkpoint, and back."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mconv.convert.containers.torch_dist import ChunkedTensor, TensorSlice
from mconv.convert.errors import MappingError, MconvError, ShapeError, SourceError
from mconv.convert.families.matching import Mapped, canonical_names
from mconv.convert.families.table import Family, Named
from mconv.convert.layouts.megatron.keys import EXPERT, KEYS, LAYER, canonical_key, key_of, places, stacked_key
from mconv.convert.model.fields import TIED, fields_of
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.dtypes import convert_tensor
from mconv.convert.tensors.nodes import FLOAT_DTYPES, Tensor
from mconv.convert.tensors.orders import Consecutive, Inverse, RowOrder
from mconv.convert.tensors.rows import ArrangedTensor, Rows, Target

_RANKS = {role: rank for rank, role in enumerate(KEYS)}


def canonical_tensors(family: Family, spec: ModelSpec, stored: Iterable[ChunkedTensor]) -> dict[str, Tensor]:
    """Every tensor of the model under its Hugging Face name, in the order of those names.

    Args:
        stored: the model's tensors, without optimizer state.

    Raises:
        MappingError: a tensor is missing, unknown, or contradicts the configuration.
        SourceError: the type of a tensor is not supported.
    """
    mapped = map_tensors(family, spec, stored)
    for error in mapped.faults.values():
        raise error
    if mapped.unknown:
        more = f" and {len(mapped.unknown) - 1} more" if len(mapped.unknown) > 1 else ""
        known = [key_of(named.role) for named in family.tensors]
        near = difflib.get_close_matches(canonical_key(mapped.unknown[0]), known, n=1)
        nearest = f"; the nearest known one is {near[0]}" if near else ""
        raise MappingError(
            f"tensor {mapped.unknown[0]}{more} does not belong to the model that the configuration describes{nearest}",
            f"check {TIED.member}, the biases and the experts in config.json or the saved arguments",
        )
    return mapped.tensors


def map_tensors(family: Family, spec: ModelSpec, stored: Iterable[ChunkedTensor]) -> Mapped:
    """Like `canonical_tensors`, for a checkpoint in which tensors may be missing, unknown or of the wrong shape."""
    store = _Store(family, spec, stored)
    found: dict[str, Rows] = {}
    faults: dict[str, MconvError] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for named, layer, expert, name in _canonical(family, spec):
        shapes[name] = spec.shape_of(named.role)
        try:
            rows = store.rows_of(named, layer, expert, name)
        except (MappingError, SourceError) as error:
            faults[name] = error
        else:
            if rows is not None:
                found[name] = rows
    tensors: dict[str, Tensor] = {
        name: ArrangedTensor(name, shapes[name], found[name], (0, place)) for place, name in enumerate(sorted(found))
    }
    return Mapped(tensors, faults, store.unused())


class _Store:
    """The stored tensors by canonical key; keeps track of those that were used."""

    def __init__(self, family: Family, spec: ModelSpec, stored: Iterable[ChunkedTensor]) -> None:
        self._spec = spec
        self._tensors: dict[str, ChunkedTensor] = {}
        for tensor in stored:
            # A norm may be stored under both of its names.
            self._tensors.setdefault(canonical_key(tensor.key), tensor)
        self._unused = dict(self._tensors)
        # Rows per layer and expert under each key, and the rows before each of the tensors that are fused there.
        self._heights: dict[str, int] = {}
        self._starts: dict[Role, int] = {}
        for role in sorted((named.role for named in family.tensors), key=_rank):
            key = key_of(role)
            self._starts[role] = self._heights.get(key, 0)
            self._heights[key] = self._starts[role] + spec.shape_of(role)[0]

    def rows_of(self, named: Named, layer: int, expert: int, name: str) -> Rows | None:
        """The rows of one canonical tensor; None if it is absent and optional.

        Raises:
            MappingError: it is missing, or contradicts the configuration.
            SourceError: its type is not supported.
        """
        key = key_of(named.role)
        pieces = self._find(key, layer, expert)
        if pieces:
            self._check(named.role, name, pieces)
            return Rows(pieces, self._order(named.role, pieces))
        if named.required(self._spec):
            raise MappingError(
                f"tensor {stacked_key(key)}, which contains {name}, is missing",
                "copy the whole checkpoint; the configuration may describe another model",
            )
        return None

    def unused(self) -> tuple[str, ...]:
        """Keys of tensors that are not in the table."""
        return tuple(tensor.key for tensor in self._unused.values())

    def _find(self, template: str, layer: int, expert: int) -> tuple[TensorSlice, ...]:
        """The slices that make up one tensor: one, or two if gate and up are stored separately."""
        layers = (("", (layer,)), (f".{layer}", ())) if LAYER in template else (("", ()),)
        experts = (("", (expert,)), (f".{expert}", ())) if EXPERT in template else (("", ()),)
        for (in_layer, leading_layer), (in_expert, leading_expert) in itertools.product(layers, experts):
            key = template.replace(LAYER, in_layer).replace(EXPERT, in_expert)
            for keys in ((key,), (f"{key}_w", f"{key}_v")):
                if all(each in self._tensors for each in keys):
                    wholes = [self._tensors[each] for each in keys]
                    for each in keys:
                        self._unused.pop(each, None)
                    self._check_stack(wholes[0], len(leading_layer), len(leading_expert))
                    leading = (*leading_layer, *leading_expert)
                    return tuple(TensorSlice(whole.key, whole, leading, (0, 0)) for whole in wholes)
        return ()

    def _check_stack(self, whole: ChunkedTensor, layers: int, experts: int) -> None:
        expected = (self._spec.layers,) * layers + (self._spec.experts,) * experts
        if whole.shape[: len(expected)] != expected:
            raise ShapeError(
                f"tensor {whole.key} has shape {list(whole.shape)}, but the configuration makes it "
                f"{[*expected, '...']}",
                "check the number of layers and experts; config.json may describe another model",
                whole.key,
                whole.shape,
                (*expected, *whole.shape[len(expected) :]),
            )

    def _check(self, role: Role, name: str, pieces: tuple[TensorSlice, ...]) -> None:
        for piece in pieces:
            if piece.dtype not in FLOAT_DTYPES:
                raise SourceError(
                    f"tensor {piece.name} has type {piece.dtype}, which is not supported",
                    f"supported: {', '.join(FLOAT_DTYPES)}; save the checkpoint in one of them",
                )
        rest = self._spec.shape_of(role)[1:]
        height = sum(piece.shape[0] if piece.shape else 0 for piece in pieces)
        expected = self._heights[key_of(role)]
        padded = role.axes[0] == "vocab" and height >= expected
        if any(piece.shape[1:] != rest for piece in pieces) or not (padded or height == expected):
            raise ShapeError(
                f"tensor {pieces[0].name}, which contains {name}, has shape {list(pieces[0].shape)} in each layer, "
                f"but the configuration makes it {[expected, *rest]}",
                f"check {_names(role)} in config.json or the saved arguments against the weights",
                pieces[0].name,
                pieces[0].shape,
                (expected, *rest),
            )

    def _order(self, role: Role, pieces: tuple[TensorSlice, ...]) -> RowOrder | None:
        order = places(role, self._spec)
        if order is not None:
            return order
        start, height = self._starts[role], self._spec.shape_of(role)[0]
        # The next rows are another tensor, or the padding of the vocabulary with which Megatron-LM makes equal parts.
        alone = height == sum(piece.shape[0] for piece in pieces)
        return None if alone else Consecutive(start, start + height)


def _rank(role: Role) -> int:
    """The position of a role among the roles of its key."""
    key_of(role)
    return _RANKS[role]


def _canonical(family: Family, spec: ModelSpec) -> Iterator[tuple[Named, int, int, str]]:
    """Every canonical tensor of a model: its entry in the table, layer, expert and name."""
    for named in family.tensors:
        for layer in range(spec.layers if "{layer}" in named.name else 1):
            for expert, name in enumerate(canonical_names(named, layer, spec)):
                yield named, layer, expert, name


@dataclass(frozen=True)
class MegatronTensor:
    """A tensor to be written: its key, how many layers and experts are stacked, and the rows of each of them.

    Attributes:
        leading: lengths of the leading axes: (), (layers,) or (layers, experts).
        parts: one Target for each place along the leading axes, in their order.
    """

    key: str
    leading: tuple[int, ...]
    parts: tuple[Target, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of all axes."""
        return (*self.leading, *self.parts[0].shape)

    @property
    def dtype(self) -> str:
        """F32, F16 or BF16."""
        return self.parts[0].rows.dtype


def megatron_tensors(family: Family, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> list[MegatronTensor]:
    """Every tensor of the Megatron-Core form, stacked. Tensors of several types that share a key become F32.

    Args:
        tensors: canonical name to tensor in a float type, without the dropped ones.

    Raises:
        MappingError: a tensor is missing, unknown, or has a shape that contradicts the spec.
    """
    unused = set(tensors)
    groups: dict[str, list[Named]] = {}
    for named in family.tensors:
        groups.setdefault(key_of(named.role), []).append(named)
    planned = []
    for template, entries in groups.items():
        entries.sort(key=lambda named: _rank(named.role))
        present = [each for each in entries if each.required(spec) or each.name.format(layer=0, expert=0) in tensors]
        if not present:
            continue
        leading = ((spec.layers,) if LAYER in template else ()) + ((spec.experts,) if EXPERT in template else ())
        sources = [_sources(present, place, spec, tensors, unused) for place in np.ndindex(*leading)]
        kinds = {source.dtype for part in sources for source in part}
        kind = BlockType[kinds.pop()] if len(kinds) == 1 else BlockType.F32
        key = stacked_key(template)
        roles = [named.role for named in present]
        shape, order = _fused_shape(roles, spec), _fused_order(roles, spec)
        role = roles[0] if len(roles) == 1 else None
        parts = (tuple(convert_tensor(source, kind) for source in part) for part in sources)
        targets = tuple(Target(key, shape, Rows(part, order), role) for part in parts)
        planned.append(MegatronTensor(key, leading, targets))
    if unused:
        raise MappingError(
            f"tensor {min(unused)} has no place in the {family.name} family",
            "a tensor is never left out silently: remove it from the checkpoint if the model does not need it",
        )
    return planned


def _sources(
    entries: list[Named], place: tuple[int, ...], spec: ModelSpec, tensors: Mapping[str, Tensor], unused: set[str]
) -> list[Tensor]:
    """Take the tensors that are fused at one place of a stack, and mark them as used."""
    layer, expert = (*place, 0, 0)[:2]
    sources = []
    for named in entries:
        name = named.name.format(layer=layer, expert=expert)
        shape = spec.shape_of(named.role)
        if name not in tensors:
            raise MappingError(f"tensor {name} is missing from the checkpoint", "download every shard again")
        if tensors[name].shape != shape:
            raise MappingError(
                f"tensor {name} has shape {list(tensors[name].shape)}, but config.json makes it {list(shape)}",
                f"check {_names(named.role)} in config.json against the weights",
            )
        unused.discard(name)
        sources.append(tensors[name])
    return sources


def _names(role: Role) -> str:
    """The members of config.json that determine a shape."""
    return ", ".join(field.member for field in fields_of(role))


def _fused_shape(roles: list[Role], spec: ModelSpec) -> tuple[int, ...]:
    shapes = [spec.shape_of(role) for role in roles]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _fused_order(roles: list[Role], spec: ModelSpec) -> RowOrder | None:
    """The order of the fused rows; None if they are simply concatenated, like gate and up."""
    orders = tuple(order for role in roles if (order := places(role, spec)) is not None)
    return Inverse(orders) if orders else None
