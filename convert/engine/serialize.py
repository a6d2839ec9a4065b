"""Plans as JSON, and the digest that names one.

Every value that a plan is made of stands once in a list, after those that it refers to, however often it is used: a
thousand layers that are slices of one stack do not repeat the stack. Reading is one pass over that list.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from mconv.convert import __version__
from mconv.convert.engine.plan import Plan
from mconv.convert.errors import FormatError
from mconv.convert.model.roles import Role
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.files import SourceFile
from mconv.convert.tensors.plain import is_plain, plain_class, plain_name

_FORMAT = "mconv-plan"
_HINT = "make the plan anew; plans are not to be edited by hand"


def plan_to_json(plan: Plan) -> str:
    """A plan as JSON, see `Plan.to_json`."""
    objects = _Writer().write(plan)
    return json.dumps({"format": _FORMAT, "version": __version__, "digest": plan.digest, "objects": objects})


def plan_digest(plan: Plan) -> str:
    """SHA-256 of a plan as a value, and of the version that carries it out."""
    text = json.dumps([__version__, _Writer().write(plan)], separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def source_files(plan: Plan) -> tuple[SourceFile, ...]:
    """Every file that a plan reads."""
    writer = _Writer()
    writer.write(plan)
    return tuple(value for value in writer.places if isinstance(value, SourceFile))


def plan_from_json(text: str) -> Plan:
    """The plan that `plan_to_json` wrote.

    Raises:
        FormatError: it was edited or cut off, or another version made it.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the plan is not valid JSON: {error}", _HINT) from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise FormatError("the text is not a plan", "give what Plan.to_json wrote")
    if document.get("version") != __version__:
        raise FormatError(
            f"the plan is from version {str(document.get('version'))[:20]}, this is {__version__}",
            "make the plan anew with this version",
        )
    try:
        plan = _read(document["objects"])
    except (KeyError, TypeError, ValueError, IndexError, RecursionError, binascii.Error) as error:
        raise FormatError(f"the plan is damaged ({error})", _HINT) from error
    if not isinstance(plan, Plan) or plan.digest != document.get("digest"):
        raise FormatError("the plan was changed after it was made", _HINT)
    return plan


class _Writer:
    """Lists the values of a plan, each once."""

    def __init__(self) -> None:
        self._objects: list[list[Any]] = []
        self.places: dict[Any, int] = {}
        # Values are compared by what they hold, which takes a while for large ones: those that were seen are known.
        self._seen: dict[int, int] = {}

    def write(self, plan: Plan) -> list[list[Any]]:
        """Each object as the name of its class and the values of its fields; the plan is the last."""
        self._place(plan)
        return self._objects

    def _place(self, value: Any) -> int:
        if id(value) in self._seen:
            return self._seen[id(value)]
        place = self.places.get(value)
        if place is None:
            cls = type(value)
            if not is_plain(cls):
                raise TypeError(f"{cls.__qualname__} cannot be part of a plan: it is not registered as plain data")
            entry = [plain_name(cls), *(self._encode(getattr(value, field.name)) for field in dataclasses.fields(cls))]
            place = self.places[value] = len(self._objects)
            self._objects.append(entry)
        self._seen[id(value)] = place
        return place

    def _encode(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, tuple):
            return [self._encode(item) for item in value]
        if isinstance(value, bytes):
            return {"bytes": base64.b64encode(value).decode("ascii")}
        if isinstance(value, Path):
            return {"path": str(value)}
        if isinstance(value, BlockType):
            return {"type": value.name}
        if isinstance(value, Role):
            return {"role": value.name}
        return {"at": self._place(value)}


def _read(objects: Any) -> Any:
    """The last of the objects."""
    found: list[Any] = []

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(decode(item) for item in value)
        if isinstance(value, dict):
            ((kind, content),) = value.items()
            match kind:
                case "at":
                    return found[content if type(content) is int and content >= 0 else len(found)]
                case "bytes":
                    return base64.b64decode(content, validate=True)
                case "path":
                    return Path(content)
                case "type":
                    return BlockType[content]
                case "role":
                    return Role[content]
            raise ValueError(f"unknown value {str(kind)[:40]!r}")
        return value

    for name, *fields in objects:
        cls = plain_class(name)
        if len(fields) != len(dataclasses.fields(cls)):
            raise ValueError(f"{name[:80]} with {len(fields)} values")
        found.append(cls(*map(decode, fields)))
    return found[-1]
