"""The parts of a family file: roles with their Hugging Face names, and drops that say why a tensor is left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def always(_: ModelSpec) -> bool:
    """The condition of a tensor that every model of the family has."""
    return True


@dataclass(frozen=True)
class Named:
    """One role of a family.

    Attributes:
        role: what its tensors do.
        name: canonical (Hugging Face) name, with placeholders `{layer}` and `{expert}`.
        required: whether a model with this spec must have the tensor.
    """

    role: Role
    name: str
    required: Callable[[ModelSpec], bool] = always


@dataclass(frozen=True)
class Drop:
    """Source tensors that are left out, and why. The pattern is a shell-style wildcard for canonical names."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class FusedTensor:
    """Several canonical tensors stored as one, which is split into ranges of rows.

    Attributes:
        stored: name on disk, with the placeholder `{layer}`. If the roles belong to experts, the leading axis is the
            expert.
        roles: the roles of its parts, in the order of their rows within each expert.
    """

    stored: str
    roles: tuple[Role, ...]


@dataclass(frozen=True)
class Family:
    """Models that share one table of tensors.

    Attributes:
        name: the value of `ModelSpec.family`.
        classes: the names in `architectures` of config.json that belong to the family.
        read_config: converts config.json to a spec; raises MappingError or SourceError.
        tensors: its roles. Layouts that do not define an order use this one.
        drops: the tensors that are left out.
        fused_tensors: alternative, fused forms of its tensors.
        rotary: which values of a head are rotated together in the canonical tensors: `half` for value i with value
            i + head_dim / 2, as in transformers, `interleaved` for neighbours.
        write_config: converts a spec to the members of config.json, given the class that the model comes from (empty if
            unknown). None if such models cannot be written.
    """

    name: str
    classes: tuple[str, ...]
    read_config: Callable[[Mapping[str, object]], ModelSpec]
    tensors: tuple[Named, ...]
    drops: tuple[Drop, ...] = ()
    fused_tensors: tuple[FusedTensor, ...] = ()
    rotary: Literal["half", "interleaved"] = "half"
    write_config: Callable[[ModelSpec, str], dict[str, Any]] | None = None

    @property
    def is_mixture(self) -> bool:
        """Whether the models have experts."""
        return any(named.role.is_expert for named in self.tensors)

    def named(self, role: Role) -> Named | None:
        """The entry of a role; None if the models have no such tensor."""
        return next((named for named in self.tensors if named.role is role), None)

    def role_of(self, name: str) -> Role | None:
        """The role of a tensor, by its canonical name; None if the family has no tensor of this name."""
        return self._roles.get(_NUMBER.sub("#", name))

    @cached_property
    def _roles(self) -> Mapping[str, Role]:
        return {named.name.format(layer="#", expert="#"): named.role for named in self.tensors}
