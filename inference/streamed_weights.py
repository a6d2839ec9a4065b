"""The weights of a checkpoint as parameters of transformers' modules: float32, one part of the model at a time.

Parts stay in memory while there is room; other parts are read again each time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.errors import MappingError
from mconv.convert.families import family_named
from mconv.convert.families.matching import fused_parts, fused_tensor
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.tensors.nodes import Tensor, row_count, row_length
from mconv.convert.tensors.orders import Listed
from mconv.convert.tensors.rows import Rows

if TYPE_CHECKING:
    import numpy as np
    import torch

READ_VALUES = 1 << 22  # values read at a time before they are widened


class Weights:
    """Parameters by the names of transformers' text model.

    Args:
        checkpoint: a checkpoint with float weights, in any layout.
        budget: how many bytes of float32 parameters may stay in memory.
    """

    def __init__(self, checkpoint: Checkpoint, budget: int) -> None:
        self._tensors = checkpoint.tensors
        self._spec = checkpoint.spec
        self._family = family_named(checkpoint.spec.family)
        self._budget = budget
        self._kept: dict[str, Mapping[str, torch.Tensor]] = {}

    def parameters(self, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, torch.Tensor]:
        """The parameters of a module.

        Args:
            prefix: the prefix of their names in the checkpoint.
            shapes: name to shape.

        Raises:
            MappingError: a parameter is missing, or has another shape.
            SourceError: a file is truncated.
        """
        return self._keep(
            prefix, lambda: {name: self._parameter(prefix + name, shape) for name, shape in shapes.items()}
        )

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a matrix, float32.

        Raises:
            MappingError: there is no matrix of this name.
            SourceError: a file is truncated.
        """
        tensor = self._tensor(name)

        def read() -> Mapping[str, torch.Tensor]:
            import torch

            rows = torch.empty(stop - start, row_length(tensor.shape))
            _read_into(rows, tensor, start)
            return {"rows": rows}

        return self._keep(f"{name}[{start}:{stop}]", read)["rows"]

    def gather(self, name: str, index: np.ndarray) -> torch.Tensor:
        """The rows of a matrix at an index: float32[*index.shape, row length].

        Raises:
            MappingError, SourceError: see `rows`.
        """
        import numpy as np

        wanted, places = np.unique(index, return_inverse=True)
        stored = Rows((self._tensor(name),), Listed.of(wanted)).read(0, len(wanted))
        return _from_stored(stored).float()[places.reshape(index.shape)]

    def have_room(self, size: int) -> bool:
        """Whether `size` more bytes may stay in memory."""
        return size <= self._budget

    def check_coverage(self, used: Collection[str]) -> None:
        """Reject a checkpoint whose tensors are not exactly those of these parameters.

        Raises:
            MappingError: a tensor is unknown or missing.
        """
        held = dict.fromkeys(part for name in used for part in self._parts(name))
        for name in held:
            self._tensor(name)
        left = [name for name in self._tensors if name not in held]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise MappingError(
                f"tensor {left[0]}{more} has no place in the model that transformers builds",
                "config.json may describe another model than the weights",
            )

    def _keep(self, key: str, read: Callable[[], Mapping[str, torch.Tensor]]) -> Mapping[str, torch.Tensor]:
        if key in self._kept:
            return self._kept[key]
        found = read()
        size = sum(value.nbytes for value in found.values())
        if size <= self._budget:
            self._budget -= size
            self._kept[key] = found
        return found

    def _parameter(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        import torch

        parts = [self._tensor(part) for part in self._parts(name)]
        wanted = (row_count(shape), row_length(shape))
        if sum(row_count(part.shape) for part in parts) != wanted[0] or row_length(parts[0].shape) != wanted[1]:
            raise MappingError(
                f"tensor {name} has shape {list(parts[0].shape)}, but transformers expects {list(shape)}",
                "config.json and the weights belong to different models, or one of them is damaged",
            )
        values = torch.empty(wanted)
        filled = 0
        for part in parts:
            height = row_count(part.shape)
            _read_into(values[filled : filled + height], part, 0)
            filled += height
        return values.view(shape)

    def _tensor(self, name: str) -> Tensor:
        found = self._tensors.get(name)
        if found is None:
            raise MappingError(
                f"tensor {name} is missing from the checkpoint",
                "config.json may describe another model than the weights",
            )
        return found

    def _parts(self, name: str) -> list[str]:
        """Canonical names of the tensors whose concatenated rows are a parameter; see `FusedTensor`."""
        found = fused_tensor(self._family, name)
        return [name] if found is None else list(fused_parts(self._family, *found, self._spec))


def _read_into(rows: torch.Tensor, tensor: Tensor, start: int) -> None:
    """Fill float32 rows with those of a tensor from row `start` on."""
    step = max(1, READ_VALUES // rows.shape[1])
    for first in range(0, len(rows), step):
        stop = min(first + step, len(rows))
        rows[first:stop] = _from_stored(tensor.read(start + first, start + stop))


def _from_stored(rows: np.ndarray) -> torch.Tensor:
    """Stored rows (float32, float16, or bfloat16 bits in uint16); assigning them to float32 rows widens them."""
    import torch

    values = torch.from_numpy(rows)
    return values.view(torch.bfloat16) if values.dtype == torch.uint16 else values


def available_memory() -> int:
    """Bytes of memory that this process could still use; zero if unknown."""
    free = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (match := re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)):
        free.append(int(match[1]) * 1024)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdigit():
        free.append(int(most) - int(used.read_text()))
    return max(0, min(free, default=0))
