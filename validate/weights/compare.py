"""Every tensor of an artifact against the same one of its reference; no model is run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from mconv.convert.cli.console import byte_progress
from mconv.convert.engine.threads import default_threads
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.nodes import row_count, stored_bytes
from mconv.quantize import kernels
from mconv.quantize.imatrix import ImportanceMatrix
from mconv.validate.findings import Finding
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
    artifact: Path,
    reference: Checkpoint,
    *,
    hf_config: Path | None = None,
    matrix: ImportanceMatrix | None = None,
    threads: int | None = None,
) -> WeightsResult:
    """Compare an artifact with its reference, in memory of a few chunks a thread; a progress bar counts bytes read.

    Args:
        artifact: a GGUF file, a Hugging Face folder or a Megatron checkpoint.
        reference: the same model, from whatever layout.
        hf_config: see `open_megatron`; for an artifact in that layout.
        matrix: the importance matrix that the artifact was quantized with.
        threads: row ranges to work on at once; all cores unless told.

    Raises:
        MappingError: the reference is no whole model.
        SourceError: a file is cut off while it is read.
        QuantizationError: the importance matrix belongs to another model.
    """
    began = time.perf_counter()
    threads = threads or default_threads()
    paired = pair_tensors(artifact, reference, hf_config)
    tensor_kernels.prepare()
    kernels.prepare({pair.found.dtype for pair in paired.pairs} & kernels.SUPPORTED)
    size = sum(map(_size, paired.pairs))
    with byte_progress(size, artifact.name) as bar, ThreadPoolExecutor(threads) as pool:
        subjects = (_subject(pair, matrix) for pair in paired.pairs)
        compared = _compare(subjects, pool, 2 * threads, bar.update)
        # Errors are wanted after all where bytes that should be equal are not.
        again = [replace(each, measured=True) for each, found in compared if not each.measured and found.unequal]
        measured = {each.pair.place.name: found for each, found in _compare(again, pool, 2 * threads, _ignore)}
    compared = [(each, measured.get(each.pair.place.name, found)) for each, found in compared]
    tensors, findings = _judge(artifact, compared)
    return WeightsResult(
        file=artifact,
        reference=reference.path,
        tensors=tuple(tensors),
        missing=paired.missing,
        extra=paired.extra,
        seconds=time.perf_counter() - began,
        bytes=size,
        findings=(*paired.findings, *findings),
    )


@dataclass(frozen=True)
class _Subject:
    """A pair and how it is compared.

    Attributes:
        encoder: what wrote its blocks, if that is known.
        measured: whether errors are wanted even where bytes are equal.
    """

    pair: Pair
    encoder: Encoder | None
    measured: bool

    @property
    def kind(self) -> BlockType:
        """Type of the artifact's tensor."""
        return BlockType[self.pair.found.dtype]

    def compare(self, start: int, stop: int) -> Comparison:
        """Compare rows [start, stop)."""
        if self.kind.is_quantized:
            return compare_blocks(self.pair, start, stop, self.encoder)
        return compare_floats(self.pair, start, stop, measured=self.measured)


def _subject(pair: Pair, matrix: ImportanceMatrix | None) -> _Subject:
    encoder = find_encoder(pair, matrix) if is_encodable(pair) else None
    return _Subject(pair, encoder, measured=not is_lossless(pair))


def _compare(
    subjects: Iterable[_Subject], pool: ThreadPoolExecutor, depth: int, advance: Callable[[int], object]
) -> list[tuple[_Subject, Comparison]]:
    """Compare whole tensors, with at most `depth` row ranges under way; one that waits holds no rows."""
    done: list[tuple[_Subject, Comparison]] = []
    pending: deque[tuple[_Subject, int, Future[Comparison]]] = deque()

    def collect() -> None:
        subject, size, future = pending.popleft()
        so_far = done.pop()[1] if done and done[-1][0] is subject else Comparison()
        done.append((subject, so_far.add(future.result())))
        advance(size)

    for subject in subjects:
        pair = subject.pair
        row_bytes = _size(pair) / row_count(pair.found.shape)
        for start, stop in row_ranges(pair.found):
            size = round(row_bytes * stop) - round(row_bytes * start)
            pending.append((subject, size, pool.submit(subject.compare, start, stop)))
            if len(pending) >= depth:
                collect()
    while pending:
        collect()
    return done


def _judge(artifact: Path, compared: list[tuple[_Subject, Comparison]]) -> tuple[list[TensorResult], list[Finding]]:
    """What each tensor is, and what is wrong with those that are not what they should be."""
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
        fault = verdict.fault or explain(each.pair, found, pairs, gguf=artifact.is_file())
        if fault.other:
            moves[place.name] = fault.other
        else:
            what = f"{place.name} ({place.gguf}): {fault.what}"
            findings.append(Finding("weights", fault.kind, place.name, what, fault.severity))
    findings += moved_findings(moves, {name: pair.place for name, pair in pairs.items()})
    if unknown:
        what = (
            f"{artifact.name}: {unknown} tensors are not, byte for byte, what quantizing the reference writes without "
            "importance or with the matrix given; they are judged by their errors"
        )
        findings.append(Finding("weights", "other_encoder", artifact.name, what, "note"))
    return tensors, findings


def _result(subject: _Subject, found: Comparison, status: Status) -> TensorResult:
    pair, place = subject.pair, subject.pair.place
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
