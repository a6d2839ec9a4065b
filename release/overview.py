"""What a release will be, what of it is done, and what the rest takes: a value, before anything is written."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mconv.convert.tensors.nodes import FLOAT_DTYPES
from mconv.quantize import kernels
from mconv.release.card.card import PLOT
from mconv.release.checking import PAGE, VALIDATION
from mconv.release.files import CARD, SUMS
from mconv.release.ledger import content_step
from mconv.release.provenance import PROVENANCE
from mconv.release.release import DOCUMENTS, EXTRAS, Release
from mconv.release.signing import SIGNATURE
from mconv.release.weights import TypeFiles

# Half of what one core of a small virtual machine was measured at (docs/explanation/kernels.md), so that most are
# faster: weights a second and thread, with a kernel of ours and through ggml alone; arithmetic of a forward pass a
# second and thread.
_KERNEL_RATE = 30e6
_GGML_RATE = 1.5e6
_FORWARD_RATE = 5e9
_READ_RATE = 200e6
# A text has at least so many bytes a token.
_BYTES_A_TOKEN = 3


@dataclass(frozen=True)
class Item:
    """A file of the release, or some that are made together.

    Attributes:
        file: its name.
        command: which command makes it.
        type: of a GGUF file.
        bytes: exact; None for what depends on what is measured.
        done: whether it is there as it should be.
    """

    file: str
    command: str
    type: str | None
    bytes: int | None
    done: bool


@dataclass(frozen=True)
class Overview:
    """A release that is not, or not wholly, there.

    Attributes:
        folder: the release.
        repository: where it goes; None if the recipe does not say it.
        source: what it is made from, and at which commit.
        items: its files.
        needed, free: bytes on the disk.
        build_seconds, check_seconds: what is left to do, cautiously estimated; 0 where nothing is.
    """

    folder: str
    repository: str | None
    source: str
    commit: str | None
    items: tuple[Item, ...]
    needed: int
    free: int
    build_seconds: float
    check_seconds: float

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        return asdict(self)


def overview(work: Release) -> Overview:
    """Look at a release. Large files are read only if they changed since their sum was made."""
    items = tuple(_items(work))
    missing = [files for files, step in work.weights if not work.ledger.is_done(step)]
    checked = work.is_checked()
    folder = work.project.folder.absolute()
    existing = next(place for place in (folder, *folder.parents) if place.is_dir())
    return Overview(
        folder=str(work.project.folder),
        repository=work.project.recipe.repository,
        source=work.material.repository or work.material.source.stem,
        commit=work.material.text("mconv.source.revision"),
        items=items,
        needed=sum(item.bytes or 0 for item in items if not item.done),
        free=shutil.disk_usage(existing).free,
        build_seconds=_build_seconds(work, missing),
        check_seconds=0.0 if checked else _check_seconds(work),
    )


def _items(work: Release) -> Iterator[Item]:
    for files, step in work.weights:
        done = work.ledger.is_done(step)
        for name, plan in files.parts.items():
            yield Item(name, "build", files.type, plan.size, done)
    done = work.ledger.is_done(content_step(EXTRAS, work.extras))
    for name, content in work.extras.items():
        yield Item(name, "build", None, len(content), done)
    checked = work.is_checked()
    for name in (VALIDATION, PAGE):
        yield Item(name, "check", None, None, checked)
    sealed = checked and work.ledger.is_intact(DOCUMENTS)
    for name in work.ledger.names(DOCUMENTS) if sealed else (CARD, PLOT, PROVENANCE, SUMS):
        yield Item(name, "check", None, None, sealed)
    if work.signature:
        yield Item(SIGNATURE, "check", None, None, sealed and work.ledger.is_done(work.signature))


def _build_seconds(work: Release, missing: list[TypeFiles]) -> float:
    if not missing:
        return 0.0
    reading = sum(path.stat().st_size for path in work.material.weights.values()) / _READ_RATE
    encoding = 0.0
    for files in missing:
        for tensor in files.quantization.plan.tensors:
            fast = tensor.encoding in kernels.SUPPORTED or tensor.encoding in FLOAT_DTYPES
            count = math.prod(tensor.target.shape)
            encoding += count / (_KERNEL_RATE if fast else _GGML_RATE)
    return reading + encoding / work.threads


def _check_seconds(work: Release) -> float:
    """The forward passes of the original and of each file over all texts; each weight multiplies and adds once."""
    recipe = work.project.recipe
    most = recipe.ctx * recipe.chunks if recipe.chunks else None
    sizes = (text.stat().st_size // _BYTES_A_TOKEN for text in recipe.texts)
    tokens = sum(size if most is None else min(size, most) for size in sizes)
    weights = work.types[0].quantization.plan.parameters
    return 2 * weights * tokens * (1 + len(work.types)) / _FORWARD_RATE / work.threads
