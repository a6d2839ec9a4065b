"""Compare every tensor of an artifact with that of its reference, without running a model."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from mconv.convert.engine.threads import default_threads
from mconv.convert.reporting import progress_bar
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.nodes import row_count, stored_bytes
from mconv.quantize import kernels
from mconv.quantize.imatrix import ImportanceMatrix
from mconv.validate.findings import Finding
from mconv.validate.subject import Subject
from mconv.validate.weights import kernels as tensor_kernels
from mconv.validate.weights.comparison import Comparison
from mconv.validate.weights.diagnosis import explain
from mconv.validate.weights.moves import moved_findings
from mconv.validate.weights.pairs import Pair, pair_tensors
from mconv.validate.weights.result import TensorResult, WeightsResult
from mconv.validate.weights.rows import Encoder, compare_blocks, compare_floats, find_encoder, is_encodable, is_lossless
from mconv.validate.weights.values import row_ranges
from mconv.validate.weights.verdict import Status, judge


def compare_weights(
    artifact: Subject,
    reference: Subject,
    *,
    matrix: ImportanceMatrix | None = None,
    threads: int | None = None,
) -> WeightsResult:
    """Compare an artifact with its reference, with a few chunks per thread in memory; a progress bar counts bytes read.

    Args:
        artifact: a GGUF file, a Hugging Face folder or a Megatron checkpoint.
        reference: the same model in any layout.
        matrix: the importance matrix that the artifact was quantized with.
        threads: number of threads. Default: one per core.

    Raises:
        MappingError: the reference is not a complete model.
        SourceError: the reference cannot be read, or a file is truncated while it is read.
        FormatError: a file of the reference breaks the rules of its format.
        QuantizationError: the importance matrix belongs to another model.
    """
    began = time.perf_counter()
    threads = threads or default_threads()
    paired = pair_tensors(artifact, reference)
    tensor_kernels.prepare()
    kernels.prepare({pair.found.dtype for pair in paired.pairs} & kernels.SUPPORTED)
    size = sum(map(_size, paired.pairs))
    with progress_bar(size, artifact.path.name) as bar, ThreadPoolExecutor(threads) as pool:
        todo = (_comparable(pair, matrix) for pair in paired.pairs)
        compared = _compare(todo, pool, 2 * threads, bar.update)
        # If bytes that should be equal differ, compute errors after all.
        again = [replace(each, measured=True) for each, found in compared if not each.measured and found.unequal]
        measured = {each.pair.place.name: found for each, found in _compare(again, pool, 2 * threads, _ignore)}
    compared = [(each, measured.get(each.pair.place.name, found)) for each, found in compared]
    tensors, findings = _judge(artifact, compared)
    return WeightsResult(
        file=artifact.path,
        reference=reference.path,
        tensors=tuple(tensors),
        missing=paired.missing,
        extra=paired.extra,
        seconds=time.perf_counter() - began,
        bytes=size,
        findings=(*paired.findings, *findings),
    )


@dataclass(frozen=True)
class _Comparable:
    """A pair, and how to compare it.

    Attributes:
        encoder: the encoder that wrote its blocks, if known.
        measured: whether to compute errors even if bytes are equal.
    """

    pair: Pair
    encoder: Encoder | None
    measured: bool

    @property
    def kind(self) -> BlockType:
        """The type of the artifact's tensor."""
        return BlockType[self.pair.found.dtype]

    def compare(self, start: int, stop: int) -> Comparison:
        """Compare rows [start, stop)."""
        if self.kind.is_quantized:
            return compare_blocks(self.pair, start, stop, self.encoder)
        return compare_floats(self.pair, start, stop, measured=self.measured)


def _comparable(pair: Pair, matrix: ImportanceMatrix | None) -> _Comparable:
    encoder = find_encoder(pair, matrix) if is_encodable(pair) else None
    return _Comparable(pair, encoder, measured=not is_lossless(pair))


def _compare(
    todo: Iterable[_Comparable], pool: ThreadPoolExecutor, depth: int, advance: Callable[[int], object]
) -> list[tuple[_Comparable, Comparison]]:
    """Compare whole tensors, with at most `depth` row ranges in progress; a waiting one holds no rows in memory."""
    done: list[tuple[_Comparable, Comparison]] = []
    pending: deque[tuple[_Comparable, int, Future[Comparison]]] = deque()

    def collect() -> None:
        first, size, future = pending.popleft()
        so_far = done.pop()[1] if done and done[-1][0] is first else Comparison()
        done.append((first, so_far.add(future.result())))
        advance(size)

    for each in todo:
        pair = each.pair
        row_bytes = _size(pair) / row_count(pair.found.shape)
        for start, stop in row_ranges(pair.found):
            size = round(row_bytes * stop) - round(row_bytes * start)
            pending.append((each, size, pool.submit(each.compare, start, stop)))
            if len(pending) >= depth:
                collect()
    while pending:
        collect()
    return done


def _judge(
    artifact: Subject, compared: list[tuple[_Comparable, Comparison]]
) -> tuple[list[TensorResult], list[Finding]]:
    """The verdict on each tensor, and findings for those that are wrong."""
    pairs = {each.pair.place.name: each.pair for each, _ in compared}
    tensors: list[TensorResult] = []
    findings: list[Finding] = []
    moves: dict[str, str] = {}
    unknown = 0
    for each, found in compared:
        place = each.pair.place
        verdict = judge(each.kind, found, each.encoder is not None)
        tensors.append(_result(each, found, verdict.status))
        unknown += verdict.status == "quantized" and each.encoder is None and is_encodable(each.pair)
        if verdict.status != "different":
            continue
        fault = verdict.fault or explain(each.pair, found, pairs, gguf=artifact.is_gguf)
        if fault.other:
            moves[place.name] = fault.other
        else:
            what = f"{place.name} ({place.gguf}): {fault.what}"
            findings.append(Finding("weights", fault.kind, place.name, what, fault.severity))
    findings += moved_findings(moves, {name: pair.place for name, pair in pairs.items()})
    if unknown:
        name = artifact.path.name
        what = (
            f"{name}: {unknown} tensors differ from what quantizing the reference writes, without an importance "
            "matrix and with the given one; they are judged by their errors"
        )
        findings.append(Finding("weights", "other_encoder", name, what, "note"))
    return tensors, findings


def _result(each: _Comparable, found: Comparison, status: Status) -> TensorResult:
    pair, place = each.pair, each.pair.place
    return TensorResult(
        name=place.name,
        gguf=place.gguf,
        layer=place.layer,
        kind=place.kind,
        type=pair.found.dtype,
        reference_type=pair.reference.dtype,
        shape=pair.found.shape,
        status=status,
        relative_rmse=found.sums.relative_rmse,
        max_error=found.sums.largest,
        cosine=found.sums.cosine,
        bytes=stored_bytes(pair.found),
    )


def _size(pair: Pair) -> int:
    return stored_bytes(pair.found) + stored_bytes(pair.reference)


def _ignore(_: int) -> None:
    pass
