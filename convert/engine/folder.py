"""Folders as outputs: written as NAME.partial with all their files, then swapped with the existing folder in one step.

At every moment, NAME is the old folder or the new one, never a mixture."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mconv.convert.engine.files import write_files
from mconv.convert.engine.journal import journal_files, remove_journal
from mconv.convert.engine.local import Executor
from mconv.convert.engine.outputs import Output, check_room, resolved
from mconv.convert.engine.partial import (
    discard_folder,
    exchange,
    lock,
    partial_path,
    rename_new,
    sync_folder,
)
from mconv.convert.engine.plan import FolderPlan
from mconv.convert.engine.run import OnProgress, Progress, carry_out
from mconv.convert.errors import DiskError, UsageError


@dataclass(frozen=True)
class FolderOutput:
    """The plan of a folder, and where it is written.

    Attributes:
        plan: its files.
        path: the folder; a link is followed.
        replaces: whether a file in the existing folder, given by its path within it, is replaced when the folder is
            overwritten. All other files are kept.
        refuses: why the existing folder must not be overwritten, as the end of a sentence; empty if it may be.
    """

    plan: FolderPlan
    path: Path
    replaces: Callable[[Path], bool]
    refuses: Callable[[Path], str]

    @property
    def place(self) -> Path:
        """The folder itself, with links followed."""
        return resolved(self.path)

    @property
    def partial(self) -> Path:
        """The folder's name while it is written."""
        return partial_path(self.place)

    def outputs(self) -> list[Output]:
        """The weight files, in the partial folder."""
        return [Output(weights, self.partial / name) for name, weights in self.plan.weights.items()]


def check_folder(output: FolderOutput, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Reject an output that cannot be written, before writing anything.

    Args:
        inputs: files that will be read. None of them may be in the folder, which is replaced.
        overwrite: whether to replace a folder that is not empty.

    Raises:
        UsageError: the folder holds an input.
        DiskError: the path is not a folder, the folder is not empty, its parent does not exist, or the disk is full.
    """
    folder, place = output.path, output.place
    replaced = {place, output.partial}
    if any(not replaced.isdisjoint(resolved(path.parent).joinpath(path.name).parents) for path in inputs):
        raise UsageError(f"{folder} contains input files", "choose another output folder")
    if place.exists() and not place.is_dir():
        raise DiskError(f"{folder} is not a folder", "choose another output folder")
    if not place.parent.is_dir():
        raise DiskError(f"{place.parent}: no such folder", "create it first, or choose another output")
    if os.path.ismount(place):
        raise DiskError(f"{folder} is a mount point, which cannot be replaced", "give a folder inside it")
    if place.is_dir() and any(place.iterdir()):
        if not overwrite:
            raise DiskError(f"{folder} exists already and is not empty", "choose another folder, or pass --overwrite")
        reason = output.refuses(place)
        if reason:
            raise DiskError(f"{folder} exists already {reason}", "choose another folder")
        for name in (*output.plan.weights, *output.plan.files):
            if (place / name).is_dir():
                raise DiskError(f"{folder / name} is in the way", "remove it, or choose another folder")
    check_room(place.parent, output.plan.size - sum(_allocated(path) for path in _files(output.partial)))


def run_folder(
    output: FolderOutput,
    *,
    executor: Executor | None = None,
    overwrite: bool = False,
    keep_partial: bool = False,
    on_progress: OnProgress | None = None,
) -> Progress:
    """Write a complete folder, or nothing under its name. See `engine.run.run`.

    Raises:
        SourceError, QuantizationError: see `run`.
        DiskError: another run is writing the folder, or another process replaced it.
        OSError: writing failed.
    """
    place = output.place
    with _growing(output, keep_partial=keep_partial) as partial:
        outputs = output.outputs()
        for each in outputs:
            each.path.parent.mkdir(parents=True, exist_ok=True)
        progress = carry_out(
            outputs,
            executor,
            overwrite=True,
            keep_partial=keep_partial,
            on_progress=on_progress,
            locked=True,
            keep_journals=True,
        )
        write_files(partial, output.plan.files)
        if place.is_dir():
            _keep_others(output)
        for each in outputs:
            remove_journal(each.partial)
        _take_place(output, overwrite=overwrite)
    return progress


@contextmanager
def _growing(output: FolderOutput, *, keep_partial: bool) -> Iterator[Path]:
    """The partial folder, locked; what a killed run with the same plan wrote is still in it."""
    partial = output.partial
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise DiskError(f"{partial} is in the way", "remove it, or choose another name")
    try:
        partial.mkdir(exist_ok=True)
        handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not lock(handle, partial):
                raise DiskError(f"{output.path} is being written by another run", "wait for it, or choose another name")
            _remove_strangers(output)
            yield partial
        finally:
            os.close(handle)
        sync_folder(partial.parent)
    except BaseException as error:
        if not (keep_partial and isinstance(error, KeyboardInterrupt)):
            discard_folder(partial)
        raise


def _remove_strangers(output: FolderOutput) -> None:
    """Remove files that this plan cannot continue."""
    own = {path for each in output.outputs() for path in (each.path, each.partial, *journal_files(each.partial))}
    for path in [*_files(output.partial)]:
        if path not in own:
            path.unlink()
    for folder, _, _ in os.walk(output.partial, topdown=False):
        if Path(folder) != output.partial:
            with suppress(OSError):
                Path(folder).rmdir()


def _keep_others(output: FolderOutput) -> None:
    """Link files of the old folder that are not part of a checkpoint, such as notes, into the new one. No copies."""
    for path in _files(output.place):
        name = path.relative_to(output.place)
        target = output.partial / name
        if output.replaces(name) or os.path.lexists(target):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(path, target, follow_symlinks=False)


def _take_place(output: FolderOutput, *, overwrite: bool) -> None:
    place, partial = output.place, output.partial
    if not place.exists():
        rename_new(partial, place)
    elif overwrite and any(place.iterdir()):
        exchange(partial, place)
        shutil.rmtree(partial)
    else:
        try:
            # Replacing an empty folder succeeds; replacing one that was filled meanwhile does not.
            partial.rename(place)
        except OSError as error:
            raise DiskError(
                f"{place} was filled by another process during the run", "choose another folder, or pass --overwrite"
            ) from error


def _files(folder: Path) -> Iterator[Path]:
    """Every file and link in a folder, at any depth."""
    for parent, folders, names in os.walk(folder):
        links = (name for name in folders if (Path(parent) / name).is_symlink())
        yield from (Path(parent) / name for name in (*names, *links))


def _allocated(path: Path) -> int:
    status = path.lstat()
    return min(status.st_blocks * 512, status.st_size)
