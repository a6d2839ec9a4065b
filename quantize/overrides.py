"""`--tensor-type REGEX=TYPE`: types that the user chooses for single tensors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from mconv.convert.errors import UsageError
from mconv.convert.tensors.block_types import BlockType, find_block_type


@dataclass(frozen=True)
class Override:
    """The type for every tensor whose name contains a match of the pattern.

    Attributes:
        text: the pattern as the user wrote it.
        pattern: searched in GGUF names, ignoring case.
        type: the requested type.
    """

    text: str
    pattern: re.Pattern[str]
    type: BlockType


def parse_override(text: str) -> Override:
    """Parse `REGEX=TYPE`, such as `attn_v=q8_0`.

    llama-quantize lower-cases the whole pattern, which turns `\\D` into `\\d`; here case is ignored instead.

    Raises:
        UsageError: no '=', an unknown type, or a pattern that is not a regular expression.
    """
    regex, equals, type_name = text.partition("=")
    if not (regex and equals and type_name):
        raise UsageError(f"--tensor-type '{text}' is not REGEX=TYPE", "write it like attn_v=q8_0")
    try:
        pattern = re.compile(regex, re.IGNORECASE)
    except re.error as error:
        raise UsageError(
            f"--tensor-type '{text}': '{regex}' is not a regular expression: {error}",
            "put a backslash before each character that should be matched literally",
        ) from None
    return Override(regex, pattern, find_block_type(type_name))


def find_override(overrides: Iterable[Override], name: str) -> Override | None:
    """The first override that the name matches."""
    return next((override for override in overrides if override.pattern.search(name)), None)


def check_overrides(overrides: Iterable[Override], quantizable: list[str], kept: list[str]) -> None:
    """Require that each override matches a tensor that can be quantized.

    Args:
        overrides: those of the command line.
        quantizable: names of the tensors that can be quantized.
        kept: names of the tensors that always keep their type, such as norms.

    Raises:
        UsageError: an override matches nothing, or only tensors that keep their type.
    """
    for override in overrides:
        if any(override.pattern.search(name) for name in quantizable):
            continue
        in_vain = next((name for name in kept if override.pattern.search(name)), None)
        if in_vain is not None:
            raise UsageError(
                f"--tensor-type '{override.text}' matches only tensors that are never quantized, such as {in_vain}",
                "remove the option, or match a weight matrix",
            )
        near = ", ".join(_nearest(override, quantizable))
        raise UsageError(f"--tensor-type '{override.text}' matches no tensor", f"the closest names are {near}")


def _nearest(override: Override, names: list[str]) -> list[str]:
    literal = re.sub(r"\\(.)", r"\1", override.text).lower()
    return difflib.get_close_matches(literal, names, n=3, cutoff=0.0)
