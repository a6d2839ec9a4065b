"""A plan: what a file will contain, byte for byte, before any weights are read.

A plan is plain data. It can be printed, compared, hashed, pickled, and converted to JSON and back; the dry run, the
progress bar, the check for free disk space, the journal and the reports all use the same plan. Equal plans write equal
bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from mconv.convert import __version__
from mconv.convert.engine.jobs import cut
from mconv.convert.errors import FormatError
from mconv.convert.tensors.encodings import find_encoding
from mconv.convert.tensors.files import SourceFile
from mconv.convert.tensors.nodes import row_length
from mconv.convert.tensors.plain import PlainWriter, plain, read_plain
from mconv.convert.tensors.rows import Target

_FORMAT = "mconv-plan"


class Envelope(Protocol):
    """Bytes around a tensor's data that depend on the data, such as the records of a zip with its checksum."""

    def __hash__(self) -> int: ...

    @property
    def before(self) -> int:
        """How many bytes come right before the data."""

    @property
    def after(self) -> int:
        """How many bytes come right after the data."""

    def seal(self, checksum: int) -> tuple[bytes, bytes]:
        """The bytes before and after the data, given the CRC-32 of the data."""


class Importance(Protocol):
    """How much each column of a tensor matters, as values stored in a file."""

    def __hash__(self) -> int: ...

    def of_row(self, row: int) -> np.ndarray:
        """The values for a row, float32 of shape (row length,); all rows of an expert share them."""


@plain
@dataclass(frozen=True)
class Plane:
    """Where one plane of an encoded tensor is stored.

    Attributes:
        offset: start of its data, counted from the end of the header.
        row_bytes: bytes per row; a vector is treated as rows of one value.
    """

    offset: int
    row_bytes: int


@plain
@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output: what it is, and how and where it is written.

    Attributes:
        target: its name, its shape, and where its rows come from.
        encoding: the name of an encoding, see `convert.tensors.encodings`.
        planes: where each of the encoding's planes lies; one for every type of GGUF.
        importance: importance values that guide the encoding, if any.
        envelope: the bytes around the data of a tensor with one plane; None if the format has only a file header.
    """

    target: Target
    encoding: str
    planes: tuple[Plane, ...]
    importance: Importance | None = None
    envelope: Envelope | None = None

    @property
    def row_bytes(self) -> int:
        """Encoded bytes per row, in all planes."""
        return sum(plane.row_bytes for plane in self.planes)

    @property
    def size(self) -> int:
        """Encoded bytes of all rows."""
        return self.target.rows.count * self.row_bytes


@dataclass(frozen=True)
class Job:
    """A row range of one tensor of a plan.

    Attributes:
        number: its place among the jobs of the plan.
        tensor: what the rows belong to.
        start, stop: the rows.
    """

    number: int
    tensor: PlannedTensor
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes that it writes."""
        return (self.stop - self.start) * self.tensor.row_bytes


@plain
@dataclass(frozen=True)
class Plan:
    """A file that is not written yet, in any format: a header, then tensors.

    Attributes:
        header: all bytes before the data.
        tensors: the tensors in file order.
        size: size of the whole file in bytes.
    """

    header: bytes = field(repr=False)
    tensors: tuple[PlannedTensor, ...]
    size: int

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(tensor.target.shape) for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight."""
        return 8 * sum(tensor.size for tensor in self.tensors) / self.parameters

    @property
    def type_counts(self) -> dict[str, int]:
        """How many tensors have each encoding, most frequent first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors:
            counts[tensor.encoding] = counts.get(tensor.encoding, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def sha256(self) -> str:
        """Hash of the header, which does not reveal where the weights come from: it may be stored in an artifact."""
        return hashlib.sha256(self.header).hexdigest()

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines the bytes of the file, with path, size and time of every source.

        A killed run is continued only if the digest is the same.
        """
        return self._identity[0]

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """Every file that is read for it."""
        return self._identity[1]

    @cached_property
    def _identity(self) -> tuple[str, tuple[SourceFile, ...]]:
        """`digest` and `sources`, which take one look at all parts."""
        writer = PlainWriter()
        text = json.dumps([__version__, writer.write(self)], separators=(",", ":"))
        digest = hashlib.sha256(text.encode("ascii")).hexdigest()
        return digest, tuple(part for part in writer.places if isinstance(part, SourceFile))

    @cached_property
    def job_count(self) -> int:
        """How many jobs there are."""
        return sum(1 for _ in self.jobs())

    def jobs(self) -> Iterator[Job]:
        """The row ranges that make up the file, ordered so that sources are read from front to back."""
        number = 0
        for tensor in self.tensors:
            for start, stop in cut(tensor.target, whole=tensor.envelope is not None):
                yield Job(number, tensor, start, stop)
                number += 1

    def describe_tensors(self) -> list[dict[str, Any]]:
        """One JSON-ready object per tensor: name, shape, type, bytes."""
        return [
            {
                "name": tensor.target.name,
                "shape": list(tensor.target.shape),
                "type": tensor.encoding,
                "bytes": tensor.size,
            }
            for tensor in self.tensors
        ]

    def to_json(self) -> str:
        """The plan as JSON, for another process, machine or day."""
        objects = PlainWriter().write(self)
        return json.dumps({"format": _FORMAT, "version": __version__, "digest": self.digest, "objects": objects})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            FormatError: it was edited or truncated, or another version wrote it.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"the plan is not valid JSON: {error}", "give what Plan.to_json wrote") from error
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise FormatError("the text is not a plan", "give what Plan.to_json wrote")
        if document.get("version") != __version__:
            raise FormatError(
                f"the plan is from version {str(document.get('version'))[:20]}, this is {__version__}",
                "make the plan anew with this version",
            )
        plan = read_plain(document.get("objects"))
        if not isinstance(plan, cls) or plan.digest != document.get("digest"):
            raise FormatError(
                "the plan was changed after it was made", "make the plan anew; plans are not to be edited by hand"
            )
        return plan


@dataclass(frozen=True)
class FolderPlan:
    """A folder that is not written yet: every file by its path within the folder.

    Attributes:
        weights: the plan of each weight file.
        files: the content of each other file.
    """

    weights: Mapping[str, Plan]
    files: Mapping[str, bytes] = field(repr=False)

    def __hash__(self) -> int:
        return hash((tuple(self.weights.items()), tuple(self.files.items())))

    @property
    def main_type(self) -> str:
        """The most frequent encoding."""
        counts: dict[str, int] = {}
        for plan in self.weights.values():
            for name, count in plan.type_counts.items():
                counts[name] = counts.get(name, 0) + count
        return max(counts, key=lambda name: counts[name])

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(plan.size for plan in self.weights.values()) + sum(map(len, self.files.values()))


def plan_tensor(
    target: Target,
    encoding: str,
    offset: int,
    *,
    importance: Importance | None = None,
    envelope: Envelope | None = None,
    alignment: int = 1,
) -> PlannedTensor:
    """Plan a tensor whose planes are stored one after another, each at a multiple of the alignment.

    Raises:
        QuantizationError: the encoding cannot store rows of this length.
    """
    planes = []
    for row_bytes in find_encoding(encoding).plane_row_bytes(row_length(target.shape)):
        planes.append(Plane(offset, row_bytes))
        offset += padded(row_bytes * target.rows.count, alignment)
    return PlannedTensor(target, encoding, tuple(planes), importance, envelope)


@dataclass(frozen=True)
class TypedTarget:
    """A target and its encoding.

    Attributes:
        importance: importance values that guide the encoding, if any.
    """

    target: Target
    encoding: str
    importance: Importance | None = None


def place_tensors(typed: Sequence[TypedTarget], alignment: int = 1) -> tuple[PlannedTensor, ...]:
    """Place tensors one after another, each plane at a multiple of the alignment.

    Raises:
        QuantizationError: an encoding cannot store rows of the target's length.
    """
    tensors = []
    offset = 0
    for each in typed:
        tensor = plan_tensor(each.target, each.encoding, offset, importance=each.importance, alignment=alignment)
        tensors.append(tensor)
        last = tensor.planes[-1]
        offset = last.offset + padded(last.row_bytes * tensor.target.rows.count, alignment)
    return tuple(tensors)


def padded(size: int, alignment: int) -> int:
    """The size, rounded up to a multiple of the alignment."""
    return -(-size // alignment) * alignment
