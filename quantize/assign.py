"""Assign a type to every tensor of a file: from options first, then the mixture, then limited by the shape.

The order of these rules, and the fallbacks, are those of llama-quantize (llama.cpp src/llama-quant.cpp
`llama_tensor_get_type`, `tensor_allows_quantization`, `tensor_type_fallback`, `tensor_requires_imatrix`). One thing
differs on purpose: llama-quantize does not count a tensor with an override among those of its kind, so the extra bits
of all later layers move. Here it is counted, and an override changes only the tensors that it names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from mconv.convert.errors import QuantizationError
from mconv.convert.layouts.gguf.names import layer_of
from mconv.convert.model.roles import Role
from mconv.convert.tensors.block_types import BlockType
from mconv.quantize.categories import category_of, keeps_type
from mconv.quantize.filetypes import FileType
from mconv.quantize.mixture import VERY_LOW_BITS, ModelFacts, Site, mixture_type
from mconv.quantize.overrides import Override, check_overrides, find_override

if TYPE_CHECKING:
    from mconv.quantize.imatrix import ImportanceMatrix


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of the unquantized GGUF file.

    Attributes:
        name, shape, type: as in the file; the slowest axis comes first.
        role: its role in the model; None if unknown.
    """

    name: str
    shape: tuple[int, ...]
    type: BlockType
    role: Role | None

    @property
    def row_weights(self) -> int:
        """Length of a row."""
        return self.shape[-1]

    @property
    def dimensions(self) -> int:
        """Number of axes as ggml counts them, without leading axes of length one."""
        shape = self.shape
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        return len(shape)


@dataclass(frozen=True)
class TypeOptions:
    """The user's options in addition to the file type.

    Attributes:
        overrides: types by name; the first match is used. Ignored for a float file type.
        output_tensor_type: type of the output matrix, or of the token embedding if it is also the output matrix.
        token_embedding_type: type of the token embedding.
        pure: give every tensor the default type of the file type.
    """

    overrides: tuple[Override, ...] = ()
    output_tensor_type: BlockType | None = None
    token_embedding_type: BlockType | None = None
    pure: bool = False


class Reason(Enum):
    """Why a tensor has its type."""

    KEPT = "kept"
    OPTION = "option"
    OVERRIDE = "override"
    MIXTURE = "mixture"


@dataclass(frozen=True)
class Assignment:
    """The type of one tensor.

    Attributes:
        tensor: the tensor.
        type: its type in the file.
        wanted: the type that it would have if its rows were whole blocks of that type.
        reason: where `wanted` comes from.
        requires_importance: whether the tensor must not be quantized to this type without importance values.
    """

    tensor: SourceTensor
    type: BlockType
    wanted: BlockType
    reason: Reason
    requires_importance: bool

    @property
    def is_fallback(self) -> bool:
        """Whether the shape requires another type than the wanted one."""
        return self.type is not self.wanted

    @property
    def is_copy(self) -> bool:
        """Whether the tensor already has the type."""
        return self.type is self.tensor.type


def assign_types(
    tensors: Sequence[SourceTensor],
    model: ModelFacts,
    file_type: FileType,
    options: TypeOptions | None = None,
    has_imatrix: bool = False,
) -> dict[str, Assignment]:
    """The type of every tensor, by name, in the order of llama-quantize.

    Raises:
        UsageError: an override matches no tensor that can be quantized.
        QuantizationError: an explicitly chosen type does not fit the rows of a tensor, or no type does.
    """
    options = options or TypeOptions()
    by_name = {tensor.name: tensor for tensor in tensors}
    order = quantize_order(by_name)
    sites = _sites(tensors, model, file_type, has_imatrix)
    check_overrides(options.overrides, list(sites), [name for name in order if name not in sites])
    return {name: _assign(by_name[name], sites.get(name), file_type, options) for name in order}


def quantize_order(names: Iterable[str]) -> list[str]:
    """Names sorted by layer, then by name; those outside the layers come first (src/llama-model-loader.h)."""
    return sorted(names, key=lambda name: (-1 if (layer := layer_of(name)) is None else layer, name))


def can_quantize(tensor: SourceTensor) -> bool:
    """Whether a tensor can be quantized; vectors, norms and routers keep their type."""
    return tensor.dimensions > 1 and not keeps_type(tensor.name, tensor.role)


def _sites(
    tensors: Sequence[SourceTensor], model: ModelFacts, file_type: FileType, has_imatrix: bool
) -> dict[str, Site]:
    """The site of each tensor that can be quantized, in llama-quantize's order."""
    roles = {tensor.name: category_of(tensor.name, tensor.role) for tensor in tensors}
    is_tied = Role.OUTPUT not in roles.values()
    v_count = sum(role is Role.ATTENTION_V for role in roles.values())
    seen: Counter[Role | None] = Counter()
    by_name = {tensor.name: tensor for tensor in tensors if can_quantize(tensor)}
    sites = {}
    for name in quantize_order(by_name):
        tensor, role = by_name[name], roles[name]
        # A layer may have several tensors of experts: only their names contain the layer.
        by_layer = model.experts > 1 and role is not Role.ATTENTION_V and file_type not in VERY_LOW_BITS
        layer = layer_of(name) if by_layer else None
        sites[name] = Site(
            role=Role.OUTPUT if is_tied and role is Role.TOKEN_EMBEDDING else role,
            row_weights=tensor.row_weights,
            stacked=tensor.dimensions > 2,
            index=seen[role] if layer is None else layer,
            count=v_count if role is Role.ATTENTION_V else model.layers,
            model=model,
            has_imatrix=has_imatrix,
        )
        seen[role] += 1
    return sites


def _assign(tensor: SourceTensor, site: Site | None, file_type: FileType, options: TypeOptions) -> Assignment:
    if site is None:
        return Assignment(tensor, tensor.type, tensor.type, Reason.KEPT, requires_importance=False)
    wanted, reason = _wanted(tensor, site, file_type, options)
    chosen = wanted if reason is Reason.OPTION else _fallback(tensor, wanted)
    if not chosen.fits(tensor.row_weights):
        raise QuantizationError(
            f"{tensor.name} cannot be {chosen.name}: its rows of {tensor.row_weights} weights "
            f"cannot be divided into blocks of {chosen.block_weights}",
            "choose a type with smaller blocks for it",
        )
    requires = chosen is not tensor.type and _requires_importance(tensor.role, chosen, file_type)
    return Assignment(tensor, chosen, wanted, reason, requires)


def _wanted(tensor: SourceTensor, site: Site, file_type: FileType, options: TypeOptions) -> tuple[BlockType, Reason]:
    if tensor.role is Role.TOKEN_EMBEDDING and options.token_embedding_type is not None:
        return options.token_embedding_type, Reason.OPTION
    if tensor.role is Role.OUTPUT and options.output_tensor_type is not None:
        return options.output_tensor_type, Reason.OPTION
    if not file_type.default.is_quantized:
        return file_type.default, Reason.MIXTURE
    override = find_override(options.overrides, tensor.name)
    if override is not None:
        return override.type, Reason.OVERRIDE
    if options.pure:
        return file_type.default, Reason.MIXTURE
    if site.role is Role.OUTPUT and options.output_tensor_type is not None:
        # Unlike a separate output matrix, a tied embedding still falls back if its rows are not whole blocks.
        return options.output_tensor_type, Reason.MIXTURE
    return mixture_type(file_type, site), Reason.MIXTURE


_FALLBACKS = {
    BlockType.IQ1_S: BlockType.IQ4_NL,
    BlockType.IQ1_M: BlockType.IQ4_NL,
    BlockType.IQ2_XXS: BlockType.IQ4_NL,
    BlockType.IQ2_XS: BlockType.IQ4_NL,
    BlockType.IQ2_S: BlockType.IQ4_NL,
    BlockType.IQ3_XXS: BlockType.IQ4_NL,
    BlockType.IQ3_S: BlockType.IQ4_NL,
    BlockType.IQ4_XS: BlockType.IQ4_NL,
    BlockType.Q2_0: BlockType.Q4_0,
    BlockType.Q2_K: BlockType.Q4_0,
    BlockType.Q3_K: BlockType.Q4_0,
    BlockType.TQ1_0: BlockType.Q4_0,
    BlockType.TQ2_0: BlockType.Q4_0,
    BlockType.Q4_K: BlockType.Q5_0,
    BlockType.Q5_K: BlockType.Q5_1,
    BlockType.Q6_K: BlockType.Q8_0,
}
"""The fallback of each type, with smaller blocks, for rows that are not whole blocks."""


def _fallback(tensor: SourceTensor, wanted: BlockType) -> BlockType:
    if wanted.fits(tensor.row_weights):
        return wanted
    if wanted not in _FALLBACKS and wanted.block_weights > 32:
        return wanted  # has no fallback: the caller raises an error
    stand_in = _FALLBACKS.get(wanted, wanted)
    return stand_in if stand_in.fits(tensor.row_weights) else BlockType.F16


_ALWAYS_REQUIRES_IMPORTANCE = frozenset({BlockType.IQ1_S, BlockType.IQ2_XXS, BlockType.IQ2_XS})
"""ggml refuses to encode these without (ggml/src/ggml.c `ggml_quantize_requires_imatrix`)."""

_LAYERS_REQUIRE_IMPORTANCE = frozenset({BlockType.IQ1_M, BlockType.IQ2_S, BlockType.IQ3_XXS})


def _requires_importance(role: Role | None, chosen: BlockType, file_type: FileType) -> bool:
    if chosen in _ALWAYS_REQUIRES_IMPORTANCE:
        return True
    if role in (Role.TOKEN_EMBEDDING, Role.OUTPUT):
        return False
    if chosen is BlockType.Q2_K:
        return file_type is FileType.Q2_K_S
    return chosen in _LAYERS_REQUIRE_IMPORTANCE


def check_importance(assignments: Iterable[Assignment], matrix: ImportanceMatrix | None) -> list[str]:
    """Check an importance matrix against the tensors to quantize.

    Returns:
        Names of the tensors that could use importance values but have none in the matrix; empty without a matrix.

    Raises:
        QuantizationError: a tensor that requires importance values has none, or its values are for a tensor of another
            size.
    """
    missing = []
    for assignment in assignments:
        tensor, block_type = assignment.tensor, assignment.type
        if assignment.is_copy or (matrix and matrix.weights_of(tensor.name, tensor.shape) is not None):
            continue
        if assignment.requires_importance:
            hint = (
                f"{matrix.file_name} has no values for this tensor: use another importance matrix"
                if matrix
                else "give an importance matrix: --imatrix, or imatrix in a recipe"
            )
            raise QuantizationError(f"{tensor.name} is useless as {block_type.name} without importance values", hint)
        if matrix and block_type.uses_importance:
            missing.append(tensor.name)
    return missing
