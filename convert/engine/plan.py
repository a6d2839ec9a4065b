"""A plan: what a file will hold, byte for byte, before a single weight has been read.

A plan is a value. It prints, compares and serialises; the dry run, the progress bar, the check for free disk and the
reports all read the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mconv.convert.containers.gguf import DEFAULT_ALIGNMENT, TensorInfo, encode_header, padded
from mconv.convert.model.metadata import Metadata
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.rows import Target


class Envelope(Protocol):
    """Bytes around a tensor's data that depend on the data, such as the records of a zip with its checksum."""

    @property
    def before(self) -> int:
        """How many stand right before the data."""

    @property
    def after(self) -> int:
        """How many stand right after it."""

    def seal(self, checksum: int) -> tuple[bytes, bytes]:
        """Both, given the CRC-32 of the data."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output: what it is, the type it gets, and where in the file its data starts.

    Attributes:
        envelope: what surrounds the data; None where the format has only headers.
    """

    target: Target
    type: BlockType
    offset: int
    envelope: Envelope | None = None

    @property
    def info(self) -> TensorInfo:
        """What the header says of it; its offset there counts from the start of the data."""
        return TensorInfo(self.target.name, self.target.shape, self.type, self.offset)

    @property
    def row_bytes(self) -> int:
        """Encoded bytes of one row; a vector counts as rows of one value."""
        return self.info.size // self.target.rows.count


@dataclass(frozen=True)
class Plan:
    """A file that is not written yet, of whatever format: a header, then tensors.

    Attributes:
        header: all bytes before the data.
        tensors: tensors in the order of the file; offsets count from the end of the header.
        size: bytes of the whole file.
    """

    header: bytes = field(repr=False)
    tensors: tuple[PlannedTensor, ...]
    size: int

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(_weights(tensor) for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each weight."""
        return 8 * sum(tensor.info.size for tensor in self.tensors) / self.parameters

    @property
    def type_counts(self) -> dict[str, int]:
        """How many tensors have each type, most frequent first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors:
            counts[tensor.type.name] = counts.get(tensor.type.name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def sha256(self) -> str:
        """Hash of the header: equal plans write equal files from equal weights."""
        return hashlib.sha256(self.header).hexdigest()

    def describe_tensors(self) -> list[dict[str, Any]]:
        """One JSON-ready object a tensor: name, shape, type, bytes."""
        return [
            {
                "name": tensor.target.name,
                "shape": list(tensor.target.shape),
                "type": tensor.type.name,
                "bytes": tensor.info.size,
            }
            for tensor in self.tensors
        ]


def lay_out(metadata: Metadata, typed: Sequence[tuple[Target, BlockType]], alignment: int = DEFAULT_ALIGNMENT) -> Plan:
    """The plan of a GGUF file: every tensor gets its place, in the order given.

    Args:
        metadata: key-value pairs in the order of the file.
        typed: tensors, each with the type that it gets.
        alignment: bytes that every tensor's start is a multiple of.

    Raises:
        QuantizationError: a row is not whole blocks of its type.
        FormatError: a tensor name that GGUF cannot hold.
    """
    tensors = place_tensors(typed, alignment)
    header = encode_header(metadata, [tensor.info for tensor in tensors], alignment)
    return Plan(header, tensors, len(header) + sum(padded(tensor.info.size, alignment) for tensor in tensors))


def place_tensors(typed: Sequence[tuple[Target, BlockType]], alignment: int = 1) -> tuple[PlannedTensor, ...]:
    """One tensor after the other, each at a multiple of the alignment.

    Raises:
        QuantizationError: a row is not whole blocks of its type.
    """
    tensors = []
    offset = 0
    for target, kind in typed:
        tensor = PlannedTensor(target, kind, offset)
        tensors.append(tensor)
        offset += padded(tensor.info.size, alignment)
    return tuple(tensors)


def _weights(tensor: PlannedTensor) -> int:
    count = 1
    for axis in tensor.target.shape:
        count *= axis
    return count
