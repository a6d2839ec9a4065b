"""What a family file is made of: roles with their Hugging Face names, and drops that say why a tensor is left out."""

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
    """Of a tensor that every model of the family has."""
    return True


@dataclass(frozen=True)
class Named:
    """One role of a family.

    Attributes:
        role: what its tensors do.
        name: canonical (Hugging Face) name; `{layer}` and `{expert}` stand for numbers.
        required: whether a model with this spec must have the tensor.
    """

    role: Role
    name: str
    required: Callable[[ModelSpec], bool] = always


@dataclass(frozen=True)
class Drop:
    """Source tensors that are left out, and why. The pattern is a shell-style wildcard over canonical names."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class FusedTensor:
    """Another spelling of several canonical tensors: one stored tensor, cut into runs of rows.

    Attributes:
        stored: name on disk; `{layer}` stands for a number. Where the roles are those of experts, its leading axis is
            the experts.
        roles: what it holds, in the order of their rows within each expert.
    """

    stored: str
    roles: tuple[Role, ...]


@dataclass(frozen=True)
class Family:
    """Models that share one table.

    Attributes:
        name: what `ModelSpec.family` says.
        classes: the names in `architectures` of config.json that belong here.
        read_config: from config.json to a spec; raises MappingError or SourceError.
        tensors: its roles. Layouts without an order of their own keep this one.
        drops: what is left out.
        fused_tensors: other spellings.
        rotary: which values of a head are turned together, as the canonical tensors have them: `half` for value i with
            value i + head_dim / 2, as transformers has it, `interleaved` for neighbours.
        write_config: the other way: the members of config.json that say a spec, given the class the model is known to
            come from (empty where nobody knows). None where no such model can be written.
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
        """Whether its models have experts."""
        return any(named.role.is_expert for named in self.tensors)

    def named(self, role: Role) -> Named | None:
        """The entry of a role; None where its models have no such tensor."""
        return next((named for named in self.tensors if named.role is role), None)

    def role_of(self, name: str) -> Role | None:
        """What a tensor does, by its canonical name; None where the family has none of this name."""
        return self._roles.get(_NUMBER.sub("#", name))

    @cached_property
    def _roles(self) -> Mapping[str, Role]:
        return {named.name.format(layer="#", expert="#"): named.role for named in self.tensors}
