"""The block types: the number of weights in a block, and its size in bytes.

Numbers and sizes are those of ggml (ggml/include/ggml.h `ggml_type`, ggml/src/ggml-common.h).
"""

from __future__ import annotations

import difflib
from enum import Enum

from mconv.convert.errors import QuantizationError, UsageError
from mconv.convert.tensors.plain import plain


@plain
class BlockType(Enum):
    """A type that ggml can encode: its number in files, and the weights and bytes of one block."""

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    BF16 = (30, 1, 2)
    Q1_0 = (41, 128, 18)
    Q2_0 = (42, 64, 18)
    Q4_0 = (2, 32, 18)
    Q4_1 = (3, 32, 20)
    Q5_0 = (6, 32, 22)
    Q5_1 = (7, 32, 24)
    Q8_0 = (8, 32, 34)
    MXFP4 = (39, 32, 17)
    NVFP4 = (40, 64, 36)
    Q2_K = (10, 256, 84)
    Q3_K = (11, 256, 110)
    Q4_K = (12, 256, 144)
    Q5_K = (13, 256, 176)
    Q6_K = (14, 256, 210)
    TQ1_0 = (34, 256, 54)
    TQ2_0 = (35, 256, 66)
    IQ1_S = (19, 256, 50)
    IQ1_M = (29, 256, 56)
    IQ2_XXS = (16, 256, 66)
    IQ2_XS = (17, 256, 74)
    IQ2_S = (22, 256, 82)
    IQ3_XXS = (18, 256, 98)
    IQ3_S = (21, 256, 110)
    IQ4_NL = (20, 32, 18)
    IQ4_XS = (23, 256, 136)

    def __init__(self, number: int, block_weights: int, block_bytes: int) -> None:
        self.number = number
        self.block_weights = block_weights
        self.block_bytes = block_bytes

    @property
    def is_quantized(self) -> bool:
        """Whether a block has several weights; false for the three float types."""
        return self.block_weights > 1

    @property
    def uses_importance(self) -> bool:
        """Whether an importance matrix changes the bytes (ggml/src/ggml-quants.c, the `quantize_*` functions)."""
        return self.is_quantized and self not in _WITHOUT_IMPORTANCE

    def fits(self, row_weights: int) -> bool:
        """Whether a row of `row_weights` weights consists of whole blocks."""
        return row_weights % self.block_weights == 0

    def row_bytes(self, row_weights: int) -> int:
        """The bytes of a row of `row_weights` weights.

        Raises:
            QuantizationError: the row does not consist of whole blocks.
        """
        if not self.fits(row_weights):
            raise QuantizationError(
                f"a row of {row_weights} weights cannot be divided into blocks of {self.block_weights} for {self.name}",
                "choose a type with smaller blocks, or a float type",
            )
        return row_weights // self.block_weights * self.block_bytes


_WITHOUT_IMPORTANCE = frozenset(
    {BlockType.Q1_0, BlockType.Q2_0, BlockType.Q8_0, BlockType.MXFP4, BlockType.NVFP4, BlockType.TQ1_0, BlockType.TQ2_0}
)


def find_block_type(name: str) -> BlockType:
    """The block type of this name, in any case.

    Raises:
        UsageError: there is no such type.
    """
    found = BlockType.__members__.get(name.upper())
    if found is None:
        near = difflib.get_close_matches(name.upper(), BlockType.__members__, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(BlockType.__members__)}"
        raise UsageError(f"unknown tensor type '{name}'", hint)
    return found
