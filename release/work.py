"""The steps of a release in their order, each done where it is not done yet: the whole of `mrelease` but publishing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from convert.console import note
from convert.errors import UsageError
from release.checking import failed_gates, measure, read_validation, validation_step
from release.documents import document_files
from release.extras import extra_files
from release.files import SUMS, FileDigest
from release.ledger import Ledger, Step, content_step, open_ledger, read_ledger, write_contents
from release.material import Material, open_material
from release.project import Project
from release.signing import SIGNATURE, check_signing, sign
from release.weights import TypeFiles, plan_types, weights_step, write_weights

EXTRAS = "extras"
VALIDATION = "validation"
DOCUMENTS = "documents"
SIGNED = "signature"


@dataclass(frozen=True)
class Work:
    """A release in the making.

    Attributes:
        types: the files of each type, planned.
        ledger: what is done.
        threads: to work with.
    """

    project: Project
    material: Material
    types: Sequence[TypeFiles]
    ledger: Ledger
    threads: int

    @cached_property
    def weights(self) -> list[tuple[TypeFiles, Step]]:
        """Each type with the step that makes its files."""
        imatrix = self.project.recipe.imatrix
        return [(files, weights_step(files, self.material, self.ledger, imatrix)) for files in self.types]

    @cached_property
    def extras(self) -> dict[str, bytes]:
        """The small files that need no measuring."""
        return extra_files(self.project, self.material, self.types)

    @cached_property
    def validation(self) -> Step:
        """The step that measures."""
        return validation_step(self.project.recipe, self.material, self.types, self.ledger)

    @property
    def signature(self) -> Step | None:
        """The step that signs, where the recipe asks for it."""
        signing = self.project.recipe.sign
        if signing is None:
            return None
        files = (self.ledger.folder / SUMS, signing.private_key)
        return Step(SIGNED, (SIGNATURE,), lambda: {path.name: self.ledger.digest(path).sha256 for path in files})

    def documents(self, accepted: str | None) -> dict[str, bytes]:
        """Card, plot, provenance and sums, for a release that is measured."""
        steps = [*(step for _, step in self.weights), content_step(EXTRAS, self.extras), self.validation]
        measured = self.ledger.outputs(name for step in steps for name in step.outputs)
        report = read_validation(self.ledger.folder)
        return document_files(self.project, self.material, self.types, self.ledger, measured, report, accepted)

    def build(self) -> None:
        """Write the weights that are missing, in one read, and the small files.

        Raises:
            MconvError: see `write_weights` and `extra_files`.
        """
        if self.project.recipe.sign:
            check_signing()
        names = [step.name for _, step in self.weights]
        self.ledger.keep_only([*names, EXTRAS, VALIDATION, DOCUMENTS, *([SIGNED] if self.signature else [])])
        missing = [(files, step) for files, step in self.weights if not self.ledger.is_done(step)]
        if missing:
            self._unseal()
            imatrix = self.project.recipe.imatrix
            write_weights(missing, self.material, self.ledger, imatrix, self.threads)
        write_contents(self.ledger, EXTRAS, self.extras)

    def check(self, accepted: str | None) -> Mapping[str, Any]:
        """Measure what was built, and finish the release with what came of it.

        Args:
            accepted: why failed gates are not to stop the release.

        Returns:
            the content of validation.json.

        Raises:
            UsageError: something is not built yet.
            MconvError: see `measure`.
        """
        self.require_built()
        if not self.ledger.is_done(self.validation):
            self._unseal()
            measure(self.project.recipe, self.material, self.types, self.ledger, self.validation, self.threads)
        report = read_validation(self.ledger.folder)
        if accepted is not None and not failed_gates(report):
            note("note: no gate fails: there is nothing to accept")
            accepted = None
        write_contents(self.ledger, DOCUMENTS, self.documents(accepted))
        if self.signature and not self.ledger.is_done(self.signature):
            check_signing()
            self.ledger.begin(self.signature)
            sign(self.ledger.folder, self._private_key)
            self.ledger.finish(self.signature)
        return report

    def require_built(self) -> None:
        """Refuse to go on with what is not there, or not from this recipe.

        Raises:
            UsageError: names the first type that is missing.
        """
        missing = next((files for files, step in self.weights if not self.ledger.is_done(step)), None)
        if missing is not None or not self.ledger.is_done(content_step(EXTRAS, self.extras)):
            what = missing.type if missing else "a small file"
            raise UsageError(f"{what} is not built, or not from this recipe", f"mrelease build {self.project.path}")

    def require_checked(self) -> Mapping[str, Any]:
        """The same for what was measured.

        Returns:
            the content of validation.json.

        Raises:
            UsageError: something is not built, or not measured since.
        """
        self.require_built()
        if not self.ledger.is_done(self.validation):
            raise UsageError("the release is not checked since it was built", f"mrelease check {self.project.path}")
        return read_validation(self.ledger.folder)

    def files(self, accepted: str | None) -> dict[str, FileDigest]:
        """Size and sum of every file of a release that is finished.

        Raises:
            UsageError: see `require_checked`, or the card is not of these numbers.
        """
        self.require_checked()
        steps = [content_step(EXTRAS, self.extras), self.validation, content_step(DOCUMENTS, self.documents(accepted))]
        steps += [self.signature] if self.signature else []
        if not all(map(self.ledger.is_done, steps)):
            raise UsageError("the release is not finished", f"mrelease check {self.project.path}")
        steps += [step for _, step in self.weights]
        return self.ledger.outputs(name for step in steps for name in step.outputs)

    @property
    def _private_key(self) -> Path:
        signing = self.project.recipe.sign
        if signing is None:
            raise ValueError("nothing is to be signed")
        return signing.private_key

    def _unseal(self) -> None:
        """Take away what says of the old files that they are whole."""
        self.ledger.discard(DOCUMENTS, SIGNED)


@contextmanager
def open_work(project: Project, threads: int) -> Iterator[Work]:
    """A release that is about to be worked on; nobody else works on it meanwhile.

    Raises:
        MconvError: see `open_material`, `plan_types` and `open_ledger`.
    """
    material = open_material(project)
    for line in material.source.notes:
        note(f"note: {line}")
    types = plan_types(project.recipe, material)
    with open_ledger(project.folder) as ledger:
        yield Work(project, material, types, ledger, threads)


def look_at(project: Project, threads: int) -> Work:
    """A release as it stands, to be looked at and not changed."""
    material = open_material(project)
    return Work(project, material, plan_types(project.recipe, material), read_ledger(project.folder), threads)
