"""An artifact opened in the words of its reference.

Names, shapes and orders of rows follow the reference's hyperparameters and not the artifact's own. So a wrong key in a
header is one finding, and not one for every tensor whose rows it would put into another order; and what is missing or
misshapen keeps nobody from looking at the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mconv.convert.containers.gguf_split import read_gguf_model
from mconv.convert.documents import read_object
from mconv.convert.errors import FormatError, MappingError, MconvError
from mconv.convert.families import family_named
from mconv.convert.families.matching import Mapped
from mconv.convert.layouts.gguf.mapping import map_tensors
from mconv.convert.layouts.gguf.names import name_of
from mconv.convert.layouts.gguf.spec import spec_of, weights_of
from mconv.convert.layouts.hf.reader import map_shards, read_model_config, read_shards
from mconv.convert.layouts.megatron.mapping import map_tensors as map_megatron_tensors
from mconv.convert.layouts.megatron.reader import is_megatron, model_tensors, read_description, read_saved
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.nodes import Tensor
from mconv.validate.findings import Finding
from mconv.validate.weights.hyperparameters import compare_keys, compare_specs


@dataclass(frozen=True)
class Artifact:
    """What an artifact holds.

    Attributes:
        tensors: canonical name to tensor.
        faults: canonical name to the reason why there is no such tensor, where the layout has to know: see `Mapped`.
        unknown: names of tensors that the reference's family has no place for.
        tied: whether its output matrix is the token embedding.
        findings: about its metadata.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    faults: Mapping[str, MconvError] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    tied: bool = False
    findings: tuple[Finding, ...] = ()


def open_artifact(path: Path, reference: Checkpoint, hf_config: Path | None) -> Artifact:
    """Open an artifact of whatever layout; only headers are read. What it is not is a finding, not an error.

    Args:
        path: a file or folder that exists.
        hf_config: see `open_checkpoint`.
    """
    try:
        if path.is_dir() and is_megatron(path):
            return _open_megatron(path, reference, hf_config)
        return _open_hf(path, reference) if path.is_dir() else _open_gguf(path, reference)
    except MconvError as error:
        return Artifact(findings=(_unreadable(path, error),))


def _open_hf(path: Path, reference: Checkpoint) -> Artifact:
    family, spec = family_named(reference.spec.family), reference.spec
    findings: list[Finding] = []
    try:
        family, spec = read_model_config(read_object(path / "config.json"))
    except MconvError as error:
        findings.append(_unreadable(path, error))
    stored, damage = read_shards(path)
    mapped, _ = map_shards(family, reference.spec, stored)
    findings += _damaged(path, damage)
    return _artifact(mapped, spec, reference, findings)


def _open_megatron(path: Path, reference: Checkpoint, hf_config: Path | None) -> Artifact:
    family, spec = family_named(reference.spec.family), reference.spec
    findings: list[Finding] = []
    saved = read_saved(path)
    try:
        description = read_description(saved, hf_config)
        family, spec = description.family, description.spec
    except MconvError as error:
        findings.append(_unreadable(path, error))
    stored, _ = model_tensors(saved, family, spec)
    mapped = map_megatron_tensors(family_named(reference.spec.family), reference.spec, stored)
    return _artifact(mapped, spec, reference, findings)


def _artifact(mapped: Mapped, spec: ModelSpec, reference: Checkpoint, findings: list[Finding]) -> Artifact:
    """The artifact in a folder, whose hyperparameters are `spec`."""
    differences = compare_specs(spec, reference.spec, folders=reference.path.is_dir())
    return Artifact(mapped.tensors, mapped.faults, mapped.unknown, spec.tied, (*findings, *differences))


def _open_gguf(path: Path, reference: Checkpoint) -> Artifact:
    file = read_gguf_model(path)
    stored = weights_of(file)
    mapped = map_tensors(family_named(reference.spec.family), reference.spec, stored)
    try:
        findings = list(compare_specs(spec_of(path.name, file), reference.spec, folders=False))
    except (MappingError, FormatError) as error:
        findings = compare_keys(file.metadata, reference.spec) if mapped.tensors else []
        findings = findings or [_unreadable(path, error)]
    return Artifact(
        tensors=mapped.tensors,
        faults=mapped.faults,
        unknown=mapped.unknown,
        tied=name_of(Role.OUTPUT) not in stored,
        findings=tuple(findings),
    )


def _damaged(path: Path, damage: Sequence[MconvError]) -> Iterator[Finding]:
    """One finding for all that is wrong with the files of a folder: what it does to tensors is told with these."""
    if damage:
        first = _unreadable(path, damage[0])
        others = f"; and {len(damage) - 1} more like it" if len(damage) > 1 else ""
        yield replace(first, what=first.what + others)


def _unreadable(path: Path, error: MconvError) -> Finding:
    what = error.what if error.what.startswith((path.name, str(path))) else f"{path.name}: {error.what}"
    return Finding("weights", "unreadable", path.name, what)
