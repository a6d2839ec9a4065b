"""The GGUF architecture of each family, the family of each architecture, and the keys of an architecture."""

from __future__ import annotations

from mconv.convert.errors import MappingError
from mconv.convert.families import family_named
from mconv.convert.families.table import Family

ARCHITECTURES = {"llama": "llama", "mistral3": "mistral3", "mixtral": "llama"}
"""Family to `general.architecture`. If several families share an architecture, a file is read as the first family with
experts if it has experts, else as the first family without."""


def architecture_of(family: str) -> str:
    """`general.architecture` of a family's GGUF files.

    Raises:
        MappingError: GGUF has no architecture for the family.
    """
    if family not in ARCHITECTURES:
        raise MappingError(f"GGUF has no architecture for the {family} family", "convert to another layout")
    return ARCHITECTURES[family]


def family_of(architecture: str, mixture: bool) -> Family:
    """The family that GGUF files of an architecture, with or without experts, are read as.

    Raises:
        MappingError: no family has this architecture.
    """
    for name, known in ARCHITECTURES.items():
        if known == architecture and family_named(name).is_mixture == mixture:
            return family_named(name)
    what = f"GGUF architecture {architecture!r}" + (" with experts" if mixture else "")
    raise MappingError(f"{what} is not supported", f"supported: {', '.join(sorted(set(ARCHITECTURES.values())))}")


def full_key(key: str, architecture: str) -> str:
    """A key of the table of fields as spelled in a file; `mconv.*` keys get no architecture prefix."""
    return key if key.startswith("mconv.") else f"{architecture}.{key}"
