"""Megatron-Core's keys against a family's table, in both directions.

Keys are those of torch_dist checkpoints (Megatron-LM megatron/core/models/gpt/gpt_layer_specs.py and
megatron/core/transformer/transformer_block.py): layers stacked along a leading axis, experts along the next, unless a
run stored each under its own number. Which ranks wrote them leaves no trace in a key.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mconv.convert.containers.torch_dist import ChunkedTensor, TensorSlice
from mconv.convert.errors import MappingError, MconvError, ShapeError, SourceError
from mconv.convert.families.table import Family, Mapped, Row, source_names
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.dtypes import convert_tensor
from mconv.convert.tensors.nodes import FLOAT_DTYPES, Tensor
from mconv.convert.tensors.orders import Consecutive, Inverse, RowOrder
from mconv.convert.tensors.rows import ArrangedTensor, Rows, Target

LAYER, EXPERT = ".{layer}", ".{expert}"

# What different wrappers put before every key: DDP and Float16Module, NeMo 2, Bridge's vision-language models.
_PREFIX = re.compile(r"^((model|module|language_model)\.)+(?=(embedding|decoder|output_layer)\.)")
# The norm before each half of a layer has another name where a layer spec does not fuse it into the linear layer.
_SPELLINGS = {
    ".input_layernorm.": ".self_attention.linear_qkv.layer_norm_",
    ".pre_mlp_layernorm.": ".mlp.linear_fc1.layer_norm_",
}


def canonical_key(key: str) -> str:
    """The key without wrappers' prefixes, a norm under its fused name."""
    key = _PREFIX.sub("", key)
    for separate, fused in _SPELLINGS.items():
        key = key.replace(separate, fused)
    return key


def separate_norm_key(key: str) -> str | None:
    """How a layer spec that keeps the norm before a mixture of experts apart calls it; None for every other key."""
    fused = _SPELLINGS[".pre_mlp_layernorm."]
    return key.replace(fused, ".pre_mlp_layernorm.") if fused in key else None


def canonical_tensors(family: Family, spec: ModelSpec, stored: Iterable[ChunkedTensor]) -> dict[str, Tensor]:
    """Every tensor of the model under its Hugging Face name, in the order of those names.

    Args:
        stored: the model's tensors; optimizer state is gone.

    Raises:
        MappingError: a tensor is missing, unknown, or contradicts the configuration.
        SourceError: a tensor of a type that cannot be carried.
    """
    mapped = map_tensors(family, spec, stored)
    for error in mapped.faults.values():
        raise error
    if mapped.unknown:
        more = f" and {len(mapped.unknown) - 1} more" if len(mapped.unknown) > 1 else ""
        near = difflib.get_close_matches(canonical_key(mapped.unknown[0]), [row.megatron for row in family.rows], n=1)
        nearest = f"; the nearest known one is {near[0]}" if near else ""
        raise MappingError(
            f"tensor {mapped.unknown[0]}{more} has no place in the model that the configuration describes{nearest}",
            "check tie_word_embeddings, the biases and the experts in config.json or the saved arguments",
        )
    return mapped.tensors


def map_tensors(family: Family, spec: ModelSpec, stored: Iterable[ChunkedTensor]) -> Mapped:
    """`canonical_tensors` of a checkpoint that may have lost tensors, gained some, or hold some of another shape."""
    store = _Store(family, spec, stored)
    found: dict[str, Rows] = {}
    faults: dict[str, MconvError] = {}
    for row, layer, expert, name in _places(family, spec):
        try:
            rows = store.rows_of(row, layer, expert, name)
        except (MappingError, SourceError) as error:
            faults[name] = error
        else:
            if rows is not None:
                found[name] = rows
    shapes = {name: tuple(spec.dimension(axis) for axis in row.shape) for row, _, _, name in _places(family, spec)}
    tensors: dict[str, Tensor] = {
        name: ArrangedTensor(name, shapes[name], found[name], (0, place)) for place, name in enumerate(sorted(found))
    }
    return Mapped(tensors, faults, store.unused())


class _Store:
    """The stored tensors by canonical key, crossed off as they are used."""

    def __init__(self, family: Family, spec: ModelSpec, stored: Iterable[ChunkedTensor]) -> None:
        self._spec = spec
        self._tensors: dict[str, ChunkedTensor] = {}
        for tensor in stored:
            # A norm may be stored under both of its names.
            self._tensors.setdefault(canonical_key(tensor.key), tensor)
        self._unused = dict(self._tensors)
        # Rows of one layer and expert under each key, and those before each of the tensors that are fused there.
        self._heights: dict[str, int] = {}
        self._starts: dict[str, int] = {}
        for row in family.rows:
            self._starts[row.hf] = self._heights.get(row.megatron, 0)
            self._heights[row.megatron] = self._starts[row.hf] + spec.dimension(row.shape[0])

    def rows_of(self, row: Row, layer: int, expert: int, name: str) -> Rows | None:
        """The rows of one canonical tensor; None where it is absent and may be.

        Raises:
            MappingError: it is missing, or contradicts the configuration.
            SourceError: its type cannot be carried.
        """
        pieces = self._find(row.megatron, layer, expert)
        if pieces:
            self._check(row, name, pieces)
            return Rows(pieces, self._order(row, pieces))
        if row.required(self._spec):
            raise MappingError(
                f"tensor {row.megatron.replace(LAYER, '').replace(EXPERT, '')}, which holds {name}, is missing",
                "copy the whole checkpoint; the configuration may describe another model",
            )
        return None

    def unused(self) -> tuple[str, ...]:
        """Keys of tensors that the table has no place for."""
        return tuple(tensor.key for tensor in self._unused.values())

    def _find(self, template: str, layer: int, expert: int) -> tuple[TensorSlice, ...]:
        """The slices that make up one tensor: one, or where gate and up were stored apart, two."""
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

    def _check(self, row: Row, name: str, pieces: tuple[TensorSlice, ...]) -> None:
        for piece in pieces:
            if piece.dtype not in FLOAT_DTYPES:
                raise SourceError(
                    f"tensor {piece.name} has type {piece.dtype}, which cannot be carried",
                    f"supported: {', '.join(FLOAT_DTYPES)}; save the checkpoint in one of them",
                )
        rest = tuple(self._spec.dimension(axis) for axis in row.shape[1:])
        height = sum(piece.shape[0] if piece.shape else 0 for piece in pieces)
        expected = self._heights[row.megatron]
        padded = row.shape[0] == "vocab" and height >= expected
        if any(piece.shape[1:] != rest for piece in pieces) or not (padded or height == expected):
            raise ShapeError(
                f"tensor {pieces[0].name}, which holds {name}, has shape {list(pieces[0].shape)} in each layer, "
                f"but the configuration makes it {[expected, *rest]}",
                f"check {', '.join(row.shape)} in config.json or the saved arguments against the weights",
                pieces[0].name,
                pieces[0].shape,
                (expected, *rest),
            )

    def _order(self, row: Row, pieces: tuple[TensorSlice, ...]) -> RowOrder | None:
        if row.places is not None:
            return row.places(self._spec)
        start, height = self._starts[row.hf], self._spec.dimension(row.shape[0])
        # What follows is another tensor, or what Megatron-LM pads the vocabulary with, so that ranks have equal parts.
        alone = height == sum(piece.shape[0] for piece in pieces)
        return None if alone else Consecutive(start, start + height)


def _places(family: Family, spec: ModelSpec) -> Iterator[tuple[Row, int, int, str]]:
    """Every canonical tensor of a model: its row of the table, layer, expert and name."""
    for row in family.rows:
        for layer in range(spec.layers if "{layer}" in row.hf else 1):
            for expert, name in enumerate(source_names(row, layer, spec)):
                yield row, layer, expert, name


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
        MappingError: a tensor is missing, unknown, or of another shape than the spec says.
    """
    unused = set(tensors)
    groups: dict[str, list[Row]] = {}
    for row in family.rows:
        groups.setdefault(row.megatron, []).append(row)
    planned = []
    for template, rows in groups.items():
        present = [row for row in rows if row.required(spec) or row.hf.format(layer=0, expert=0) in tensors]
        if not present:
            continue
        leading = ((spec.layers,) if LAYER in template else ()) + ((spec.experts,) if EXPERT in template else ())
        sources = [_sources(present, place, spec, tensors, unused) for place in np.ndindex(*leading)]
        kinds = {source.dtype for part in sources for source in part}
        kind = BlockType[kinds.pop()] if len(kinds) == 1 else BlockType.F32
        key = template.replace(LAYER, "").replace(EXPERT, "")
        shape, order = _fused_shape(present, spec), _fused_order(present, spec)
        parts = (tuple(convert_tensor(source, kind) for source in part) for part in sources)
        planned.append(MegatronTensor(key, leading, tuple(Target(key, shape, Rows(part, order)) for part in parts)))
    if unused:
        raise MappingError(
            f"tensor {min(unused)} has no place in the {family.name} family",
            "a tensor is never left out silently: remove it from the checkpoint if the model does not need it",
        )
    return planned


def _sources(
    rows: list[Row], place: tuple[int, ...], spec: ModelSpec, tensors: Mapping[str, Tensor], unused: set[str]
) -> list[Tensor]:
    """The tensors that are fused at one place of a stack, crossed off."""
    layer, expert = (*place, 0, 0)[:2]
    sources = []
    for row in rows:
        name = row.hf.format(layer=layer, expert=expert)
        shape = tuple(spec.dimension(axis) for axis in row.shape)
        if name not in tensors:
            raise MappingError(f"tensor {name} is missing from the checkpoint", "download every shard again")
        if tensors[name].shape != shape:
            raise MappingError(
                f"tensor {name} has shape {list(tensors[name].shape)}, but config.json makes it {list(shape)}",
                f"check {', '.join(row.shape)} in config.json against the weights",
            )
        unused.discard(name)
        sources.append(tensors[name])
    return sources


def _fused_shape(rows: list[Row], spec: ModelSpec) -> tuple[int, ...]:
    height = sum(spec.dimension(row.shape[0]) for row in rows)
    return (height, *(spec.dimension(axis) for axis in rows[0].shape[1:]))


def _fused_order(rows: list[Row], spec: ModelSpec) -> RowOrder | None:
    """The order of the fused rows; none where they only follow each other, as up follows gate."""
    places = tuple(row.places(spec) for row in rows if row.places is not None)
    return Inverse(places) if places else None
