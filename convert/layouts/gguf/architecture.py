"""Which GGUF architecture a family has, and the other way round; the keys of an architecture."""

from __future__ import annotations

from mconv.convert.errors import MappingError
from mconv.convert.families import family_named
from mconv.convert.families.table import Family

ARCHITECTURES = {"llama": "llama", "mistral3": "mistral3", "mixtral": "llama"}
"""Family to `general.architecture`. Of several with one architecture, a file is read as the first with, or the first
without experts, as the file has them or not."""


def architecture_of(family: str) -> str:
    """`general.architecture` of a family's GGUF files.

    Raises:
        MappingError: it has none.
    """
    if family not in ARCHITECTURES:
        raise MappingError(f"GGUF has no architecture for the {family} family", "convert to another layout")
    return ARCHITECTURES[family]


def family_of(architecture: str, mixture: bool) -> Family:
    """The family that GGUF files of an architecture, with or without experts, are read as.

    Raises:
        MappingError: no family has them.
    """
    for name, known in ARCHITECTURES.items():
        if known == architecture and family_named(name).is_mixture == mixture:
            return family_named(name)
    what = f"GGUF architecture {architecture!r}" + (" with experts" if mixture else "")
    raise MappingError(f"{what} is not supported", f"supported: {', '.join(sorted(set(ARCHITECTURES.values())))}")


def full_key(key: str, architecture: str) -> str:
    """A key of the table of fields as it stands in a file: keys of our own belong to no architecture."""
    return key if key.startswith("mconv.") else f"{architecture}.{key}"
