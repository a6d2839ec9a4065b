"""The steps of a release, in order, each skipped if already done: all of `mrelease` except publishing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mconv.convert.engine.threads import default_threads
from mconv.convert.errors import UsageError
from mconv.convert.reporting import note
from mconv.release.card.card import PLOT
from mconv.release.card.front_matter import gaps
from mconv.release.checking import (
    PAGE,
    VALIDATION,
    failed_gates,
    judge,
    measure,
    measurement_step,
    validation_files,
    validation_text,
)
from mconv.release.files import CARD, SUMS, FileDigest
from mconv.release.finishing import make_finishing_files
from mconv.release.inputs import ReleaseInputs, open_inputs
from mconv.release.ledger import Ledger, Step, content_step, open_ledger, read_ledger, write_contents
from mconv.release.project import Project, open_project
from mconv.release.signing import SIGNATURE, check_signing, sign
from mconv.release.slsa_provenance import PROVENANCE
from mconv.release.small_files import LICENCE, make_small_files
from mconv.release.weights import TypeFiles, plan_types, weights_step, write_weights

# Names of steps in the ledger.
SMALL_FILES = "extras"
VALIDATED = "validation"
FINISHING_FILES = "documents"
SIGNED = "signature"


@dataclass(frozen=True)
class Release:
    """A release that is being built.

    Attributes:
        project: the recipe and the folder.
        inputs: its inputs.
        types: the files of each type, planned.
        ledger: what is done.
        threads: number of threads.
    """

    project: Project
    inputs: ReleaseInputs
    types: Sequence[TypeFiles]
    ledger: Ledger
    threads: int

    @cached_property
    def weights(self) -> list[tuple[TypeFiles, Step]]:
        """Each type with the step that makes its files."""
        imatrix = self.project.recipe.imatrix
        return [(files, weights_step(files, self.inputs, self.ledger, imatrix)) for files in self.types]

    @cached_property
    def small_files(self) -> dict[str, bytes]:
        """The small files that need no measuring."""
        return make_small_files(self.project, self.inputs, self.types)

    @cached_property
    def measurements(self) -> Step:
        """The step that measures."""
        return measurement_step(self.project.recipe, self.inputs, self.types, self.ledger)

    @property
    def signature(self) -> Step | None:
        """The step that signs, if the recipe requires it."""
        signing = self.project.recipe.sign
        if signing is None:
            return None
        files = (self.ledger.folder / SUMS, signing.private_key)
        return Step(SIGNED, (SIGNATURE,), lambda: {path.name: self.ledger.digest(path).sha256 for path in files})

    def build(self, *, keep_partial: bool = False) -> None:
        """Write the weights that are missing, in one read, and the small files.

        Args:
            keep_partial: after an interrupt, keep what is done of the weights.

        Raises:
            MconvError: see `write_weights` and `make_small_files`.
        """
        if self.signature:
            check_signing()
        optional = [SIGNED] if self.signature else []
        # Check the preconditions of the last step before the first.
        self.ledger.check_free([*self.small_files, VALIDATION, PAGE, CARD, PLOT, PROVENANCE, SUMS])
        weights = (step.name for _, step in self.weights)
        self.ledger.keep_only([*weights, SMALL_FILES, self.measurements.name, VALIDATED, FINISHING_FILES, *optional])
        missing = [(files, step) for files, step in self.weights if not self.ledger.is_done(step)]
        if missing:
            self._mark_unfinished()
            imatrix = self.project.recipe.imatrix
            write_weights(missing, self.inputs, self.ledger, imatrix, self.threads, keep_partial=keep_partial)
        if not self.ledger.is_done(content_step(SMALL_FILES, self.small_files)):
            self._tell_gaps()
        self._write(SMALL_FILES, self.small_files)

    def check(self, accepted: str | None) -> Mapping[str, Any]:
        """Compare the built files with the source, check the gates, and finish the release with the results.

        Args:
            accepted: the reason for accepting failed gates; ignored if none fails.

        Returns:
            the content of validation.json.

        Raises:
            UsageError: something is not built yet.
            MconvError: see `measure`.
        """
        self.require_built()
        if not self.ledger.is_done(self.measurements):
            self._mark_unfinished()
            measure(self.project.recipe, self.inputs, self.types, self.ledger, self.measurements, self.threads)
        report = judge(self.ledger.folder, self.project.recipe.gates)
        self._write(VALIDATED, validation_files(report))
        write_contents(self.ledger, FINISHING_FILES, self._finishing_files(report, accepted))
        if self.signature and not self.ledger.is_done(self.signature):
            self._sign(self.signature)
        return report

    def is_checked(self) -> bool:
        """Whether everything is built, measured and checked against the gates of the recipe."""
        if not all(self.ledger.is_done(step) for _, step in self.weights) or not self.ledger.is_done(self.measurements):
            return False
        report = judge(self.ledger.folder, self.project.recipe.gates)
        path = self.ledger.folder / VALIDATION
        return self.ledger.is_intact(VALIDATED) and path.read_bytes() == validation_text(report)

    def require_built(self) -> None:
        """Check that all files are built from this recipe.

        Raises:
            UsageError: names what is missing.
        """
        missing = [files.type for files, step in self.weights if not self.ledger.is_done(step)]
        if not self.ledger.is_done(content_step(SMALL_FILES, self.small_files)):
            missing.append("the small files")
        if missing:
            raise UsageError(
                f"not built, changed since, or not from this recipe: {', '.join(missing)}", self._hint("build")
            )

    def require_checked(self) -> Mapping[str, Any]:
        """Check that the built files have been measured.

        Returns:
            the content of validation.json.

        Raises:
            UsageError: a file is not built, or not measured since it was built.
        """
        self.require_built()
        if not self.is_checked():
            raise UsageError("the release is not checked since it was built", self._hint("check"))
        return judge(self.ledger.folder, self.project.recipe.gates)

    def built_files(self) -> dict[str, FileDigest]:
        """Size and checksum of the files that `build` makes."""
        return self.ledger.outputs(self._built_names())

    def files(self, accepted: str | None) -> dict[str, FileDigest]:
        """Size and checksum of every file of a finished release.

        Raises:
            UsageError: it is not finished, or was finished with another reason for accepting failed gates.
        """
        finishing = self._finishing_files(self.require_checked(), accepted)
        steps = [content_step(FINISHING_FILES, finishing), *([self.signature] if self.signature else [])]
        if not all(map(self.ledger.is_done, steps)):
            why = "" if accepted is None else " --accept-failed-gates REASON"
            raise UsageError("the release is not finished, or has another REASON", self._hint("check") + why)
        return self._measured() | self.ledger.outputs(name for step in steps for name in step.outputs)

    def _tell_gaps(self) -> None:
        for line in gaps(self.project.recipe, self.inputs):
            note(line)
        if LICENCE not in self.small_files:
            note(f"no {LICENCE}: neither the source nor licence_file in the recipe provides one")

    def _write(self, name: str, files: Mapping[str, bytes]) -> None:
        if not self.ledger.is_done(content_step(name, files)):
            self._mark_unfinished()
            write_contents(self.ledger, name, files)

    def _finishing_files(self, report: Mapping[str, Any], accepted: str | None) -> dict[str, bytes]:
        reason = accepted if failed_gates(report) else None
        return make_finishing_files(
            self.project, self.inputs, self.types, self.ledger, self._measured(), report, reason
        )

    def _measured(self) -> dict[str, FileDigest]:
        """The files that the card, the provenance and the checksums describe."""
        return self.ledger.outputs([*self._built_names(), VALIDATION, PAGE])

    def _built_names(self) -> list[str]:
        return [*(name for files in self.types for name in files.parts), *self.small_files]

    def _sign(self, step: Step) -> None:
        signing = self.project.recipe.sign
        if signing is not None:
            self.ledger.begin(step)
            sign(self.ledger.folder, signing.private_key)
            self.ledger.finish(step)

    def _hint(self, command: str) -> str:
        return f"run: mrelease {command} {self.project.path}"

    def _mark_unfinished(self) -> None:
        """Remove the card, the checksums and the signature: they describe files that will change."""
        self.ledger.discard(FINISHING_FILES, SIGNED)


@contextmanager
def open_release(recipe: Path, folder: Path | None, threads: int | None) -> Iterator[Release]:
    """The release of a recipe, locked against other runs.

    Args:
        folder: the folder of the release; see `open_project`.
        threads: number of threads; None uses all cores.

    Raises:
        MconvError: see `open_project`, `open_inputs`, `plan_types` and `open_ledger`.
    """
    project = open_project(recipe, folder)
    inputs = open_inputs(project)
    for line in inputs.form.notes:
        note(line)
    types = plan_types(project.recipe, inputs)
    with open_ledger(project.folder) as ledger:
        yield Release(project, inputs, types, ledger, threads or default_threads())


def view_release(recipe: Path, folder: Path | None, threads: int | None) -> Release:
    """The release of a recipe in its current state, read-only; for arguments and errors see `open_release`."""
    project = open_project(recipe, folder)
    inputs = open_inputs(project)
    types = plan_types(project.recipe, inputs)
    return Release(project, inputs, types, read_ledger(project.folder), threads or default_threads())
