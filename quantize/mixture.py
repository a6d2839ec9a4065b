"""The mixtures: which tensors of a file type, such as Q4_K_M, get more or fewer bits than the rest.

Each file type is one row of a table: role of a tensor to rule. The rules are those of llama-quantize at commit
0c1e57098 (llama.cpp src/llama-quant.cpp `llama_tensor_get_type_impl`), for the architectures `llama` and `mistral3`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mconv.convert.model.roles import Role
from mconv.convert.tensors.block_types import BlockType
from mconv.quantize.filetypes import FileType


@dataclass(frozen=True)
class ModelFacts:
    """The hyperparameters that a mixture depends on.

    Attributes:
        architecture: `general.architecture` of the GGUF file.
        layers: number of layers.
        heads, kv_heads: attention heads of the first layer; kv_heads is 0 if it has no attention.
        experts: 0 for a dense model.
    """

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    experts: int = 0

    @property
    def heads_per_kv(self) -> int:
        """How many query heads share one key-value head; 0 without attention."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_llama_70b(self) -> bool:
        """Whether llama.cpp treats it as a 70B model (llama.cpp src/models/llama.cpp)."""
        return self.architecture == "llama" and self.layers == 80 and self.heads != self.kv_heads


@dataclass(frozen=True)
class Site:
    """The properties of a tensor that a rule depends on.

    Attributes:
        role: the role whose rule the tensor follows; None if there is none.
        row_weights: length of a row.
        stacked: whether experts are stacked along a third axis.
        index, count: the tensor is number `index` of `count` that follow the rule.
        model: the hyperparameters of the model.
        has_imatrix: whether there is an importance matrix.
    """

    role: Role | None
    row_weights: int
    stacked: bool
    index: int
    count: int
    model: ModelFacts
    has_imatrix: bool


Rule = Callable[[Site], "BlockType | None"]
"""The type that a rule gives to a tensor; None for the default of the file type."""


def _always(chosen: BlockType | None) -> Rule:
    return lambda _: chosen


def _first(number: int, chosen: BlockType, rest: BlockType | None = None) -> Rule:
    return lambda site: chosen if site.index < number else rest


def _first_part(parts: int, chosen: BlockType, rest: BlockType | None = None) -> Rule:
    return lambda site: chosen if site.index < site.count // parts else rest


def _middle(chosen: BlockType) -> Rule:
    return lambda site: chosen if site.count // 8 <= site.index < 7 * site.count // 8 else None


def _more_bits(chosen: BlockType) -> Rule:
    return lambda site: chosen if _deserves_more_bits(site.index, site.count) else None


def _deserves_more_bits(index: int, count: int) -> bool:
    """Whether it is in the first or last eighth of the layers, or every third between."""
    eighth = count // 8
    return index < eighth or index >= 7 * count // 8 or (index - eighth) % 3 == 2


def _shared_heads(chosen: BlockType, rest: BlockType | None = None) -> Rule:
    """A V matrix that four or more query heads share is small and more important."""
    return lambda site: chosen if site.model.heads_per_kv >= 4 else rest


def _shared_heads_or_experts(chosen: BlockType, rest: BlockType) -> Rule:
    return lambda site: chosen if site.model.heads_per_kv >= 4 or site.model.experts >= 4 else rest


def _without_imatrix(rule: Rule) -> Rule:
    return lambda site: None if site.has_imatrix else rule(site)


def _with_imatrix(rule: Rule) -> Rule:
    return lambda site: rule(site) if site.has_imatrix else None


def _either(*rules: Rule) -> Rule:
    return lambda site: next((chosen for rule in rules if (chosen := rule(site))), None)


Rules = dict[Role | None, Rule]

_V, _K, _Q, _O = Role.ATTENTION_V, Role.ATTENTION_K, Role.ATTENTION_Q, Role.ATTENTION_OUTPUT
_UP, _GATE, _DOWN = Role.FFN_UP, Role.FFN_GATE, Role.FFN_DOWN
_OUTPUT, _EMBEDDING = Role.OUTPUT, Role.TOKEN_EMBEDDING
_T = BlockType


def _very_low_bits(v_and_down: BlockType, embedding: BlockType, attention_output: BlockType | None) -> Rules:
    return {
        _OUTPUT: _always(_T.Q5_K),
        _EMBEDDING: _always(embedding),
        _V: _shared_heads_or_experts(_T.Q4_K, v_and_down),
        _DOWN: _first_part(8, v_and_down),
        _O: _always(attention_output),
    }


VERY_LOW_BITS: dict[FileType, Rules] = {
    FileType.IQ1_S: _very_low_bits(_T.Q2_K, _T.Q2_K, _T.IQ2_XXS),
    FileType.IQ1_M: _very_low_bits(_T.Q2_K, _T.Q2_K, _T.IQ2_XXS),
    FileType.IQ2_XXS: _very_low_bits(_T.Q2_K, _T.Q2_K, None),
    FileType.IQ2_XS: _very_low_bits(_T.Q2_K, _T.Q2_K, None),
    FileType.IQ2_S: _very_low_bits(_T.IQ3_S, _T.IQ3_S, _T.IQ3_S),
    FileType.IQ2_M: _very_low_bits(_T.IQ3_S, _T.IQ3_S, _T.IQ3_S),
}
"""The file types around two bits, which have separate rules throughout."""

_MIXTURES: dict[FileType, Rules] = {
    **VERY_LOW_BITS,
    FileType.Q2_0: {_EMBEDDING: _always(_T.Q4_K)},
    FileType.TQ1_0: {_EMBEDDING: _always(_T.Q4_K)},
    FileType.TQ2_0: {_EMBEDDING: _always(_T.Q4_K)},
    FileType.Q4_0: {_DOWN: _with_imatrix(_first_part(8, _T.Q4_1))},
    FileType.Q5_0: {_DOWN: _with_imatrix(_first_part(8, _T.Q5_1))},
    FileType.Q2_K: {_V: _shared_heads(_T.Q4_K, _T.Q3_K), _O: _always(_T.Q3_K), _DOWN: _always(_T.Q3_K)},
    FileType.Q2_K_S: {_V: _shared_heads(_T.Q4_K), _DOWN: _first_part(8, _T.Q4_K)},
    FileType.Q3_K_M: {_V: _first(2, _T.Q5_K, _T.Q4_K), _O: _always(_T.Q4_K), _DOWN: _first_part(16, _T.Q5_K, _T.Q4_K)},
    FileType.Q3_K_L: {_V: _always(_T.Q5_K), _O: _always(_T.Q5_K), _DOWN: _always(_T.Q5_K)},
    FileType.Q4_K_S: {_V: _first(4, _T.Q5_K), _DOWN: _first_part(8, _T.Q5_K)},
    FileType.Q4_K_M: {_V: _more_bits(_T.Q6_K), _DOWN: _more_bits(_T.Q6_K)},
    FileType.Q5_K_M: {_V: _more_bits(_T.Q6_K), _DOWN: _more_bits(_T.Q6_K)},
    FileType.IQ3_XXS: {
        _OUTPUT: _always(_T.Q5_K),
        _EMBEDDING: _always(_T.IQ3_S),
        _V: _either(_shared_heads(_T.Q4_K), _without_imatrix(_always(_T.IQ3_S))),
        _K: _always(_T.IQ2_S),
        _Q: _always(_T.IQ2_S),
        _O: _always(_T.IQ3_S),
        _DOWN: _without_imatrix(_first_part(8, _T.Q4_K, _T.Q3_K)),
    },
    FileType.IQ3_XS: {
        _V: _shared_heads(_T.Q4_K),
        _K: _always(_T.IQ3_XXS),
        _Q: _always(_T.IQ3_XXS),
        _UP: _middle(_T.IQ3_XXS),
        _GATE: _middle(_T.IQ3_XXS),
    },
    FileType.IQ3_S: {_V: _shared_heads(_T.Q4_K)},
    FileType.IQ3_M: {_V: _always(_T.Q4_K), _O: _always(_T.Q4_K), _DOWN: _first_part(8, _T.Q4_K)},
    FileType.IQ4_NL: {_V: _shared_heads(_T.Q5_K), _DOWN: _without_imatrix(_first_part(8, _T.Q5_K))},
    FileType.IQ4_XS: {_V: _shared_heads(_T.Q5_K), _DOWN: _without_imatrix(_first_part(8, _T.Q5_K))},
}

_EIGHT_EXPERTS = 8
"""Mixtral's number of experts. Attention is such a small part of the file that more bits there cost almost nothing."""

_EIGHT_EXPERTS_VERY_LOW_BITS: Rules = {_K: _always(_T.Q4_K), _O: _always(_T.Q5_K)}
_EIGHT_EXPERTS_USUAL: Rules = {_V: _always(_T.Q8_0), _K: _always(_T.Q8_0), _O: _always(None)}
_EIGHT_EXPERTS_BETTER_OUTPUT = frozenset(
    {
        FileType.Q2_K, FileType.Q3_K_S, FileType.Q3_K_M, FileType.Q4_K_S, FileType.Q4_K_M,
        FileType.IQ3_XXS, FileType.IQ3_XS, FileType.IQ3_S, FileType.IQ3_M, FileType.IQ4_NL, FileType.IQ4_XS,
    }
)  # fmt: skip


def mixture_type(file_type: FileType, site: Site) -> BlockType:
    """The type that a file type gives to a tensor, before its shape is checked.

    Args:
        file_type: a quantized file type.
        site: the tensor. A token embedding that is also the output matrix is treated as the output matrix.
    """
    if file_type is FileType.MXFP4_MOE:
        return BlockType.MXFP4 if site.stacked and site.role is not Role.OUTPUT else BlockType.Q8_0
    if site.role is Role.OUTPUT:
        return _output_type(file_type, site)
    rule = _rules(file_type, site.model.experts).get(site.role)
    chosen = (rule(site) if rule else None) or file_type.default
    is_70b_v = site.role is Role.ATTENTION_V and site.model.is_llama_70b and file_type not in VERY_LOW_BITS
    # There V has an eighth of the size of Q, so one more bit costs almost nothing.
    return BlockType.Q5_K if is_70b_v and chosen in (BlockType.Q3_K, BlockType.Q4_K) else chosen


def _output_type(file_type: FileType, site: Site) -> BlockType:
    if not file_type.default.fits(site.row_weights) or file_type.default is BlockType.Q8_0:
        return BlockType.Q8_0
    rule = _MIXTURES.get(file_type, {}).get(Role.OUTPUT)
    return (rule(site) if rule else None) or BlockType.Q6_K


def _rules(file_type: FileType, experts: int) -> Rules:
    rules = _MIXTURES.get(file_type, {})
    if experts != _EIGHT_EXPERTS:
        return rules
    if file_type in VERY_LOW_BITS:
        return {**rules, **_EIGHT_EXPERTS_VERY_LOW_BITS}
    rules = {**rules, **_EIGHT_EXPERTS_USUAL}
    if file_type in _EIGHT_EXPERTS_BETTER_OUTPUT:
        rules[_O] = _always(BlockType.Q5_K)
    if file_type is FileType.IQ3_M:
        rules[_DOWN] = _either(rules[_DOWN], _more_bits(BlockType.Q4_K))
    return rules
