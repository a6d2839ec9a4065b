"""The file types, such as Q4_K_M: each with its number and its default block type.

Names, aliases, numbers and defaults are those of llama-quantize (llama.cpp tools/quantize/quantize.cpp, include/llama.h
`llama_ftype`, src/llama-quant.cpp `llama_ftype_get_default_type`).
"""

from __future__ import annotations

import difflib
from enum import Enum

from mconv.convert.errors import UsageError
from mconv.convert.tensors.block_types import BlockType


class FileType(Enum):
    """A type for a whole file: its number in `general.file_type`, and the block type of tensors without a rule."""

    F32 = (0, BlockType.F32)
    F16 = (1, BlockType.F16)
    BF16 = (32, BlockType.BF16)
    Q1_0 = (40, BlockType.Q1_0)
    Q2_0 = (41, BlockType.Q2_0)
    Q4_0 = (2, BlockType.Q4_0)
    Q4_1 = (3, BlockType.Q4_1)
    Q5_0 = (8, BlockType.Q5_0)
    Q5_1 = (9, BlockType.Q5_1)
    Q8_0 = (7, BlockType.Q8_0)
    MXFP4_MOE = (38, BlockType.MXFP4)
    Q2_K_S = (21, BlockType.Q2_K)
    Q2_K = (10, BlockType.Q2_K)
    Q3_K_S = (11, BlockType.Q3_K)
    Q3_K_M = (12, BlockType.Q3_K)
    Q3_K_L = (13, BlockType.Q3_K)
    Q4_K_S = (14, BlockType.Q4_K)
    Q4_K_M = (15, BlockType.Q4_K)
    Q5_K_S = (16, BlockType.Q5_K)
    Q5_K_M = (17, BlockType.Q5_K)
    Q6_K = (18, BlockType.Q6_K)
    TQ1_0 = (36, BlockType.TQ1_0)
    TQ2_0 = (37, BlockType.TQ2_0)
    IQ1_S = (24, BlockType.IQ1_S)
    IQ1_M = (31, BlockType.IQ1_M)
    IQ2_XXS = (19, BlockType.IQ2_XXS)
    IQ2_XS = (20, BlockType.IQ2_XS)
    IQ2_S = (28, BlockType.IQ2_XS)
    IQ2_M = (29, BlockType.IQ2_S)
    IQ3_XXS = (23, BlockType.IQ3_XXS)
    IQ3_XS = (22, BlockType.IQ3_S)
    IQ3_S = (26, BlockType.IQ3_S)
    IQ3_M = (27, BlockType.IQ3_S)
    IQ4_NL = (25, BlockType.IQ4_NL)
    IQ4_XS = (30, BlockType.IQ4_XS)

    def __init__(self, number: int, default: BlockType) -> None:
        self.number = number
        self.default = default


_ALIASES = {"Q3_K": FileType.Q3_K_M, "Q4_K": FileType.Q4_K_M, "Q5_K": FileType.Q5_K_M}


def find_file_type(name: str) -> FileType:
    """The file type with this name or alias, in upper or lower case: `q4_k` is Q4_K_M.

    Raises:
        UsageError: the name is unknown.
    """
    known = {**FileType.__members__, **_ALIASES}
    found = known.get(name.upper())
    if found is None:
        near = difflib.get_close_matches(name.upper(), known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(FileType.__members__)}"
        raise UsageError(f"unknown file type '{name}'", hint)
    return found
