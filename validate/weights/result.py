"""The result of a comparison of weights: one row per tensor, and summaries by type, by kind and by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mconv.validate.findings import Finding
from mconv.validate.weights.verdict import Status


@dataclass(frozen=True)
class TensorResult:
    """One tensor.

    Attributes:
        name: canonical (Hugging Face) name.
        gguf: name in a GGUF file, where the experts of a layer share one.
        layer: its number; None outside the layers.
        kind: the GGUF name without the layer: attn_q, ffn_down_exps.
        type, reference_type: F32, F16, BF16 or a block type.
        shape: lengths of the axes, slowest first.
        status: see `mconv.validate.weights.verdict.Verdict`.
        relative_rmse, max_error, cosine: errors of the values against the reference.
        bytes: size of the artifact's tensor.
    """

    name: str
    gguf: str
    layer: int | None
    kind: str
    type: str
    reference_type: str
    shape: tuple[int, ...]
    status: Status
    relative_rmse: float
    max_error: float
    cosine: float
    bytes: int

    @property
    def weights(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Summary:
    """Tensors that have something in common.

    Attributes:
        key: what they have in common: a type, a kind, or the number of a layer.
        tensors: how many; of which exact, quantized, different.
        bytes, weights: sums over the tensors.
        relative_rmse: root mean square of their values, weighted by number of weights.
        max_error: the largest error.
        worst: name of the tensor with the largest relative RMSE, which is `worst_relative_rmse`.
    """

    key: str | int | None
    tensors: int
    exact: int
    quantized: int
    different: int
    bytes: int
    weights: int
    relative_rmse: float
    max_error: float
    worst: str
    worst_relative_rmse: float


@dataclass(frozen=True)
class WeightsResult:
    """The comparison of the weights of an artifact with its reference.

    Attributes:
        file, reference: paths as given.
        tensors: the tensors that both have in the same shape.
        missing: canonical names of the reference's tensors that are missing in the artifact.
        extra: names of the artifact's tensors that are not in the reference.
        seconds: wall time.
        bytes: bytes read from both.
        findings: the faults.
    """

    file: Path
    reference: Path
    tensors: tuple[TensorResult, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    seconds: float
    bytes: int
    findings: tuple[Finding, ...]

    def count(self, status: Status) -> int:
        """How many tensors have a status."""
        return _count(self.tensors, status)

    @property
    def by_type(self) -> list[Summary]:
        """A summary of each type, most weights first."""
        return sorted(_summarize(self.tensors, lambda tensor: tensor.type), key=lambda row: -row.weights)

    @property
    def by_kind(self) -> list[Summary]:
        """A summary of each kind."""
        return _summarize(self.tensors, lambda tensor: tensor.kind)

    @property
    def by_layer(self) -> list[Summary]:
        """A summary of each layer, and of the tensors outside the layers."""
        return _summarize(self.tensors, lambda tensor: tensor.layer)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        return {
            "file": str(self.file),
            "reference": str(self.reference),
            "exact": self.count("exact"),
            "quantized": self.count("quantized"),
            "different": self.count("different"),
            "missing": list(self.missing),
            "extra": list(self.extra),
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "by_type": _rows("type", self.by_type),
            "by_kind": _rows("kind", self.by_kind),
            "by_layer": _rows("layer", self.by_layer),
            "seconds": round(self.seconds, 3),
            "bytes": self.bytes,
            "findings": [finding.to_json() for finding in self.findings],
        }


def _rows(key: str, summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    rows = [asdict(summary) for summary in summaries]
    return [{key: row.pop("key"), **row} for row in rows]


def _count(tensors: Sequence[TensorResult], status: Status) -> int:
    return sum(tensor.status == status for tensor in tensors)


def _summarize(tensors: Sequence[TensorResult], key: Callable[[TensorResult], str | int | None]) -> list[Summary]:
    groups: dict[str | int | None, list[TensorResult]] = {}
    for tensor in tensors:
        groups.setdefault(key(tensor), []).append(tensor)
    return [_summary(found, group) for found, group in groups.items()]


def _summary(key: str | int | None, group: Sequence[TensorResult]) -> Summary:
    weights = sum(tensor.weights for tensor in group)
    # A tensor with NaN has no error value and is the worst.
    worst = max(group, key=lambda tensor: math.inf if math.isnan(tensor.relative_rmse) else tensor.relative_rmse)
    return Summary(
        key=key,
        tensors=len(group),
        exact=_count(group, "exact"),
        quantized=_count(group, "quantized"),
        different=_count(group, "different"),
        bytes=sum(tensor.bytes for tensor in group),
        weights=weights,
        relative_rmse=math.sqrt(sum(tensor.weights * tensor.relative_rmse**2 for tensor in group) / weights),
        max_error=max(tensor.max_error for tensor in group),
        worst=worst.name,
        worst_relative_rmse=worst.relative_rmse,
    )
