"""An artifact opened in the words of its reference.

Names, shapes and orders of rows follow the reference's hyperparameters and not the artifact's own. So a wrong key in a
header is one finding, and not one for every tensor whose rows it would put into another order; and what is missing or
misshapen keeps nobody from looking at the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from convert.checkpoint import Checkpoint
from convert.errors import FormatError, MappingError, MconvError
from convert.families import family_named
from convert.families.table import map_tensors
from convert.layouts import open_checkpoint
from convert.layouts.gguf_source import spec_of, weights_of
from convert.layouts.gguf_split import read_gguf_model
from convert.layouts.megatron import is_megatron
from convert.tensors import Tensor
from validate.findings import Finding
from validate.weights.hyperparameters import compare_keys, compare_specs


@dataclass(frozen=True)
class Artifact:
    """What an artifact holds.

    Attributes:
        tensors: canonical name to tensor.
        misshapen: GGUF names of tensors that do not have the shape of the reference's, and the shape that they have.
        unknown: names of tensors that the reference's family has no place for.
        tied: whether its output matrix is the token embedding.
        findings: about its metadata.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    misshapen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
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
        if path.is_dir():
            return _open_folder(path, reference, hf_config)
        return _open_gguf(path, reference)
    except MconvError as error:
        return Artifact(findings=(_unreadable(path, error),))


def _open_folder(path: Path, reference: Checkpoint, hf_config: Path | None) -> Artifact:
    checkpoint = open_checkpoint(path, hf_config if is_megatron(path) else None)[1]
    findings = compare_specs(checkpoint.spec, reference.spec, folders=reference.path.is_dir())
    return Artifact(checkpoint.tensors, tied=checkpoint.spec.tied, findings=tuple(findings))


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
        misshapen={name: stored[name].shape for name in mapped.faults if name in stored},
        unknown=tuple(tensor.name for tensor in mapped.unknown),
        tied="output.weight" not in stored,
        findings=tuple(findings),
    )


def _unreadable(path: Path, error: MconvError) -> Finding:
    what = error.what if error.what.startswith(path.name) else f"{path.name}: {error.what}"
    return Finding("weights", "unreadable", path.name, what)
