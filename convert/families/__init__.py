"""The model families, one file each. To add a family, add a file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from mconv.convert.errors import MappingError
from mconv.convert.families.table import Family


@cache
def families() -> tuple[Family, ...]:
    """Every family in this package."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return tuple(module.FAMILY for module in modules if hasattr(module, "FAMILY"))


def family_of_class(name: str) -> Family:
    """The family of a transformers class, as named by `architectures` in config.json.

    Raises:
        MappingError: no family has the class.
    """
    for family in families():
        if name in family.classes:
            return family
    known = sorted(known for family in families() for known in family.classes)
    raise MappingError(f"architecture {name!r} is not supported", f"supported: {', '.join(known)}")


def family_named(name: str) -> Family:
    """The family with this name, as in `ModelSpec.family`."""
    return next(family for family in families() if family.name == name)
