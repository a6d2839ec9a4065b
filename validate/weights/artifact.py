"""Open an artifact with the tensor names of its reference.

Names, shapes and orders of rows follow from the hyperparameters of the reference, not from those of the artifact. So a
wrong key in a header is one finding, not one for every tensor whose rows it would reorder; and tensors that are missing
or have a wrong shape do not prevent the comparison of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mconv.convert.errors import FormatError, MappingError, MconvError
from mconv.convert.families import family_named
from mconv.convert.families.matching import Mapped
from mconv.convert.layouts.gguf.mapping import map_tensors
from mconv.convert.layouts.gguf.names import name_of
from mconv.convert.layouts.gguf.spec import spec_of, weights_of
from mconv.convert.layouts.hf.reader import map_shards, read_model_config
from mconv.convert.layouts.megatron.mapping import map_tensors as map_megatron_tensors
from mconv.convert.layouts.megatron.reader import model_tensors
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.nodes import Tensor
from mconv.validate.findings import Finding
from mconv.validate.subject import Subject
from mconv.validate.weights.hyperparameters import compare_keys, compare_specs


@dataclass(frozen=True)
class Artifact:
    """The content of an artifact.

    Attributes:
        tensors: canonical name to tensor.
        faults: canonical name to the reason why the tensor is unusable, if the layout finds this out; see `Mapped`.
        unknown: names of tensors that do not belong to the family of the reference.
        tied: whether its output matrix is the token embedding.
        findings: findings about its metadata.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    faults: Mapping[str, MconvError] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    tied: bool = False
    findings: tuple[Finding, ...] = ()


def open_artifact(subject: Subject, reference: Subject) -> Artifact:
    """Open an artifact of any layout; only headers are read. Faults become findings, not errors.

    Args:
        subject: a file or folder that exists.
        reference: a complete model.

    Raises:
        SourceError, FormatError, MappingError: the reference cannot be read.
    """
    expected = reference.checkpoint.spec
    try:
        if subject.is_gguf:
            return _open_gguf(subject, expected)
        mapped, spec, findings = _OPENERS[subject.layout](subject, expected)
    except MconvError as error:
        return Artifact(findings=(_unreadable(subject.path, error),))
    differences = compare_specs(spec, expected, folders=not reference.is_gguf)
    return Artifact(mapped.tensors, mapped.faults, mapped.unknown, spec.tied, (*findings, *differences))


def _open_hf(subject: Subject, expected: ModelSpec) -> _Folder:
    family, spec = family_named(expected.family), expected
    findings: list[Finding] = []
    try:
        family, spec = read_model_config(subject.config)
    except MconvError as error:
        findings.append(_unreadable(subject.path, error))
    stored, damage = subject.shards
    mapped, _ = map_shards(family, expected, stored)
    findings += _damaged(subject.path, damage)
    return mapped, spec, findings


def _open_megatron(subject: Subject, expected: ModelSpec) -> _Folder:
    family, spec = family_named(expected.family), expected
    findings: list[Finding] = []
    saved = subject.saved
    try:
        family, spec = subject.description.family, subject.description.spec
    except MconvError as error:
        findings.append(_unreadable(subject.path, error))
    stored, _ = model_tensors(saved, family, spec)
    mapped = map_megatron_tensors(family_named(expected.family), expected, stored)
    return mapped, spec, findings


_Folder = tuple[Mapped, ModelSpec, list[Finding]]
"""The tensors in a folder by the names of the reference, its own hyperparameters, and the faults of its files."""

_OPENERS: Mapping[str, Callable[[Subject, ModelSpec], _Folder]] = {"hf": _open_hf, "megatron": _open_megatron}


def _open_gguf(subject: Subject, expected: ModelSpec) -> Artifact:
    file, path = subject.header, subject.path
    stored = weights_of(file)
    mapped = map_tensors(family_named(expected.family), expected, stored)
    try:
        findings = list(compare_specs(spec_of(path.name, file), expected, folders=False))
    except (MappingError, FormatError) as error:
        findings = compare_keys(file.metadata, expected) if mapped.tensors else []
        findings = findings or [_unreadable(path, error)]
    return Artifact(
        tensors=mapped.tensors,
        faults=mapped.faults,
        unknown=mapped.unknown,
        tied=name_of(Role.OUTPUT) not in stored,
        findings=tuple(findings),
    )


def _damaged(path: Path, damage: Sequence[MconvError]) -> Iterator[Finding]:
    """One finding for all faults of the files in a folder: the affected tensors have separate findings."""
    if damage:
        first = _unreadable(path, damage[0])
        others = f"; and {len(damage) - 1} more like it" if len(damage) > 1 else ""
        yield replace(first, what=first.what + others)


def _unreadable(path: Path, error: MconvError) -> Finding:
    what = error.what if error.what.startswith((path.name, str(path))) else f"{path.name}: {error.what}"
    return Finding("weights", "unreadable", path.name, what)
