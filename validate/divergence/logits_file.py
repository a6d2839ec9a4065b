"""Read and write llama.cpp's file of a model's log-probabilities (llama-perplexity --save-all-logits).

Layout (llama.cpp tools/perplexity/perplexity.cpp, `perplexity` and `log_softmax`), little-endian: "_logits_", then
int32 tokens in a chunk, int32 tokens of the vocabulary, int32 chunks, int32 the tokens of all chunks. Then for every
scored position a float32 step and a float32 lowest log-probability, and uint16 steps above that for each token, one
more if the size of the vocabulary is odd. Values more than 16 nats below the most likely token are stored as lowest.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from mconv.convert.engine.partial import lock, naming, partial_path
from mconv.convert.errors import DiskError, FormatError, SourceError
from mconv.convert.reporting import format_bytes
from mconv.convert.tensors.files import SourceFile
from mconv.inference.schedule import LogitBlock, Schedule, first_scored, scored_per_chunk
from mconv.validate.divergence.softmax import CACHED_LOGITS, softmax

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"_logits_"
RANGE = 16.0  # nats below the most likely token
LARGEST_STEP = 65535
_HEADER = struct.Struct("<8siii")
_LIMIT = 1 << 31


def is_logits_file(path: Path) -> bool:
    """Whether a file begins like a file of log-probabilities.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_dir():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class LogitsFile:
    """Log-probabilities saved by llama-perplexity or mval; a `mconv.inference.language_model.LogitSource`.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
        FormatError: its header is not that of a logits file.
        SourceError: it is truncated.
    """

    def __init__(self, path: Path) -> None:
        import numpy as np

        self.path = path
        self._file = SourceFile.at(path)
        header = bytearray(_HEADER.size)
        if self._file.size < len(header):
            raise SourceError(f"{path} ends inside its header", "the file is truncated; save the logits again")
        self._file.read_into(memoryview(header), 0)
        magic, length, self.vocab_size, count = _HEADER.unpack(header)
        if magic != MAGIC:
            raise FormatError(
                f"{path} is not a file of log-probabilities", "give one from llama-perplexity or mval kl --save-logits"
            )
        if min(length - 2, self.vocab_size, count) < 1 or length * count >= _LIMIT:
            raise FormatError(
                f"{path}: {count} chunks of {length} tokens, {self.vocab_size} tokens of vocabulary",
                "the file is damaged; save the logits again",
            )
        layout = _Layout(count, length, self.vocab_size)
        if self._file.size != layout.size:
            raise SourceError(
                f"{path} has {self._file.size} bytes, but {count} chunks take {layout.size}",
                "the file is truncated or incomplete; save the logits again",
            )
        self._layout = layout
        self.chunks = np.empty((count, length), np.int32)
        self._file.read_into(self.chunks.data.cast("B"), _HEADER.size)
        if self.chunks.min() < 0 or self.chunks.max() >= self.vocab_size:
            raise FormatError(f"{path} contains tokens outside its vocabulary", "the file is damaged; save it again")

    def used_tokens(self) -> int:
        """`vocab_size`, since the file does not show which tokens are padding."""
        return self.vocab_size

    def scored_logits(self, chunks: np.ndarray, schedule: Schedule) -> Generator[LogitBlock, None, None]:
        """The log-probabilities of the scored positions of the first chunks; see `LogitSource`."""
        import numpy as np

        for step in schedule.steps():
            for number in range(step.group.start, step.group.stop):
                targets = step.targets(chunks[number])
                if len(targets):
                    packed = np.empty((len(targets), self._layout.row_bytes), np.uint8)
                    self._file.read_into(packed.data.cast("B"), self._layout.place(number, step.first))
                    yield LogitBlock(number, step.first, _unpack(packed, self.vocab_size), targets)


class LogitsWriter:
    """A logits file that is being written, to be used in a `with` block: it is renamed when the block succeeds.

    Args:
        path: the file.
        chunks: int32[chunks, length], the tokens of the text; the reader of the file inserts BOS.
        vocab_size: number of logits per row.

    Raises:
        DiskError: it exists already, its folder does not, or the disk has no room.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, chunks: np.ndarray, vocab_size: int) -> None:
        self._layout = _Layout(len(chunks), chunks.shape[1], vocab_size)
        check_new_file(path, self._layout.size)
        self._path = path
        self._partial = partial_path(path)
        # Do not follow a link that was put there, and do not truncate a file that another run is writing.
        handle = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        self._file = os.fdopen(handle, "wb")
        if not lock(handle, self._partial):
            raise DiskError(f"{path} is being written by another run", "wait for it, or choose another name")
        self._file.truncate(0)
        self._file.write(_HEADER.pack(MAGIC, chunks.shape[1], vocab_size, len(chunks)) + chunks.tobytes())

    def __enter__(self) -> LogitsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with naming(self._path), self._file:
                if error is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if error is None:
                self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def write(self, block: LogitBlock, pool: ThreadPoolExecutor) -> None:
        """Write the log-probabilities of some scored positions at their offsets.

        Args:
            block: logits of the whole vocabulary.
            pool: threads that share the rows.
        """
        step = max(1, CACHED_LOGITS // block.logits.shape[1])
        parts = [block.logits[start : start + step] for start in range(0, len(block.logits), step)]
        self._file.seek(self._layout.place(block.chunk, block.position))
        for packed in pool.map(_pack, parts):
            with naming(self._path):
                self._file.write(packed.data)


def check_new_file(path: Path, size: int) -> None:
    """Check that the file can be written, before running any model.

    Raises:
        DiskError: the file exists already, its folder does not, or the disk has no room.
    """
    if path.exists():
        raise DiskError(f"{path} exists already", "choose another name, or remove it")
    if not path.parent.is_dir():
        raise DiskError(f"{path.parent}: no such folder", "create it first, or choose another output")
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise DiskError(
            f"not enough space for {path}: {format_bytes(size)} needed, {format_bytes(free)} free",
            "free some space, or run fewer --chunks",
        )


class _Layout:
    """The offsets in a file."""

    def __init__(self, count: int, length: int, vocab_size: int) -> None:
        self.row_bytes = 8 + 2 * (vocab_size + vocab_size % 2)
        self._first = first_scored(length)
        self._rows = scored_per_chunk(length)
        self._data = _HEADER.size + 4 * count * length
        self.size = self._data + count * self._rows * self.row_bytes

    def place(self, chunk: int, position: int) -> int:
        """Offset of a scored position of a chunk."""
        return self._data + (chunk * self._rows + position - self._first) * self.row_bytes


def _pack(logits: np.ndarray) -> np.ndarray:
    """float32[rows, vocabulary] to uint8[rows, bytes of a row], with the float32 steps of llama-perplexity."""
    import numpy as np

    rows, vocab = logits.shape
    packed = np.zeros((rows, 8 + 2 * (vocab + vocab % 2)), np.uint8)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # logits that are not finite are kept
        found = softmax(logits)
        top = found.top
        low = np.maximum(logits.min(axis=1), top - np.float32(RANGE))
        step = (top - low) / np.float32(LARGEST_STEP)
        packed[:, :8].view(np.float32)[:] = np.stack([step, low - top - np.log(found.total).astype(np.float32)], axis=1)
        steps = (logits - low[:, None]) * np.where(step > 0, 1 / step, 0)[:, None]
        packed[:, 8 : 8 + 2 * vocab].view(np.uint16)[:] = np.rint(np.maximum(steps, 0))
    return packed


def _unpack(packed: np.ndarray, vocab_size: int) -> np.ndarray:
    """The inverse of `_pack`: float32 log-probabilities."""
    import numpy as np

    step, low = np.moveaxis(packed[:, :8].view(np.float32), 1, 0)[..., None]
    values = packed[:, 8 : 8 + 2 * vocab_size].view(np.uint16).astype(np.float32)
    values *= step
    values += low
    return values
