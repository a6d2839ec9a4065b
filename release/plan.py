"""The plan of a release, as a value: its files, what is done, and the space and time for the rest."""

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
from mconv.release.release import FINISHING_FILES, SMALL_FILES, Release
from mconv.release.signing import SIGNATURE
from mconv.release.slsa_provenance import PROVENANCE
from mconv.release.weights import TypeFiles

# Half of the speed measured on one core of a small virtual machine (docs/explanation/kernels.md), so that most machines
# are faster. Per second and thread: weights with this package's kernels, weights with ggml, and arithmetic operations
# of a forward pass.
_KERNEL_RATE = 30e6
_GGML_RATE = 1.5e6
_FORWARD_RATE = 5e9
_READ_RATE = 200e6
# A text has at least this many bytes per token.
_BYTES_A_TOKEN = 3


@dataclass(frozen=True)
class PlannedFile:
    """A file of the release, or several that are made together.

    Attributes:
        file: its name.
        command: the command that makes it.
        type: the file type of a GGUF file.
        bytes: its exact size; None if it depends on measurements.
        done: whether it exists and is up to date.
    """

    file: str
    command: str
    type: str | None
    bytes: int | None
    done: bool


@dataclass(frozen=True)
class ReleasePlan:
    """The plan of a release that is not complete yet.

    Attributes:
        folder: the folder of the release.
        repository: the repository to publish to; None if the recipe does not name one.
        source: the source, and its commit.
        items: the files of the release.
        needed, free: bytes on the disk.
        build_seconds, check_seconds: conservative estimate of the remaining time; 0 if nothing remains.
    """

    folder: str
    repository: str | None
    source: str
    commit: str | None
    items: tuple[PlannedFile, ...]
    needed: int
    free: int
    build_seconds: float
    check_seconds: float

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        return asdict(self)


def plan_release(release: Release) -> ReleasePlan:
    """Inspect a release. Large files are read only if they changed since their checksum was computed."""
    items = tuple(_items(release))
    missing = [files for files, step in release.weights if not release.ledger.is_done(step)]
    checked = release.is_checked()
    folder = release.project.folder.absolute()
    existing = next(place for place in (folder, *folder.parents) if place.is_dir())
    return ReleasePlan(
        folder=str(release.project.folder),
        repository=release.project.recipe.repository,
        source=release.inputs.repository or release.inputs.stem,
        commit=release.inputs.text("mconv.source.revision"),
        items=items,
        needed=sum(item.bytes or 0 for item in items if not item.done),
        free=shutil.disk_usage(existing).free,
        build_seconds=_build_seconds(release, missing),
        check_seconds=0.0 if checked else _check_seconds(release),
    )


def _items(release: Release) -> Iterator[PlannedFile]:
    for files, step in release.weights:
        done = release.ledger.is_done(step)
        for name, plan in files.parts.items():
            yield PlannedFile(name, "build", files.type, plan.size, done)
    done = release.ledger.is_done(content_step(SMALL_FILES, release.small_files))
    for name, content in release.small_files.items():
        yield PlannedFile(name, "build", None, len(content), done)
    checked = release.is_checked()
    for name in (VALIDATION, PAGE):
        yield PlannedFile(name, "check", None, None, checked)
    finished = checked and release.ledger.is_intact(FINISHING_FILES)
    for name in release.ledger.names(FINISHING_FILES) if finished else (CARD, PLOT, PROVENANCE, SUMS):
        yield PlannedFile(name, "check", None, None, finished)
    if release.signature:
        yield PlannedFile(SIGNATURE, "check", None, None, finished and release.ledger.is_done(release.signature))


def _build_seconds(release: Release, missing: list[TypeFiles]) -> float:
    if not missing:
        return 0.0
    reading = sum(path.stat().st_size for path in release.inputs.weights.values()) / _READ_RATE
    encoding = 0.0
    for files in missing:
        for tensor in files.quantization.plan.tensors:
            fast = tensor.encoding in kernels.SUPPORTED or tensor.encoding in FLOAT_DTYPES
            count = math.prod(tensor.target.shape)
            encoding += count / (_KERNEL_RATE if fast else _GGML_RATE)
    return reading + encoding / release.threads


def _check_seconds(release: Release) -> float:
    """The time for the forward passes of the original and of each file over all texts: two operations per weight."""
    recipe = release.project.recipe
    most = recipe.ctx * recipe.chunks if recipe.chunks else None
    sizes = (text.stat().st_size // _BYTES_A_TOKEN for text in recipe.texts)
    tokens = sum(size if most is None else min(size, most) for size in sizes)
    weights = release.types[0].quantization.plan.parameters
    return 2 * weights * tokens * (1 + len(release.types)) / _FORWARD_RATE / release.threads
