"""The index of a torch.distributed.checkpoint, written without torch (see torch_dist.py, which reads it)."""

from __future__ import annotations

from typing import Any

from mconv.convert.containers.pickles import Record, make_record, named, write_pickle
from mconv.convert.containers.torch_dist import DTYPES

_CHECKPOINT = "torch.distributed.checkpoint."


class IndexWriter:
    """Collects the entries of `.metadata` for one file of chunks and objects.

    Args:
        file: its name.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._listed: dict[str, Record] = {}
        # The keys are distinct objects, which a dict keeps apart by identity.
        self._stored: dict[Record, Record] = {}

    def add_tensor(self, key: str, dtype: str, shape: tuple[int, ...]) -> None:
        """List a tensor, before its chunks.

        Args:
            dtype: F32, F16 or BF16.
        """
        self._listed[key] = _record(
            "metadata TensorStorageMetadata",
            properties=make_record(_CHECKPOINT + "metadata TensorProperties", state=_properties(dtype)),
            size=_size(shape),
            chunks=[],
        )

    def add_chunk(self, key: str, offsets: tuple[int, ...], shape: tuple[int, ...], begin: int, end: int) -> None:
        """List a chunk: where it starts in the tensor, its lengths, and the range of bytes in the file."""
        chunk = _record("metadata ChunkStorageMetadata", offsets=_size(offsets), sizes=_size(shape))
        self._listed[key].attribute("chunks").append(chunk)
        self._store(key, _size(offsets), begin, end)

    def add_object(self, key: str, begin: int, end: int) -> None:
        """List an object, and its range of bytes in the file."""
        self._listed[key] = make_record(_CHECKPOINT + "metadata BytesStorageMetadata", state={})
        self._store(key, None, begin, end)

    def encode(self) -> bytes:
        """The content of `.metadata`."""
        return write_pickle(
            _record(
                "metadata Metadata",
                state_dict_metadata=self._listed,
                planner_data=None,
                storage_data=self._stored,
                storage_meta=None,
                version="1.0.0",
            )
        )

    def _store(self, key: str, offset: Record | None, begin: int, end: int) -> None:
        place = _record("metadata MetadataIndex", fqn=key, offset=offset, index=None)
        self._stored[place] = _record(
            "filesystem _StorageInfo", relative_path=self._file, offset=begin, length=end - begin
        )


def _record(name: str, **attributes: Any) -> Record:
    return make_record(_CHECKPOINT + name, state=attributes)


def _size(lengths: tuple[int, ...]) -> Record:
    return make_record("torch Size", lengths)


def _properties(dtype: str) -> tuple[Any, ...]:
    """dtype, layout, requires_grad, memory format, pin_memory: `TensorProperties.__getstate__`."""
    name = next(name for name, ours in DTYPES.items() if ours == dtype)
    layout = make_record("torch.serialization _get_layout", "torch.strided")
    contiguous = make_record(_CHECKPOINT + "metadata _MEM_FORMAT_ENCODING", 0)
    return (named(name), layout, False, contiguous, False)
