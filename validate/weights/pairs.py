"""Match the tensors of an artifact with those of the reference: pairs, missing and extra tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mconv.convert.errors import ShapeError, SourceError
from mconv.convert.families import family_named
from mconv.convert.families.matching import canonical_names, in_layers
from mconv.convert.families.table import Family
from mconv.convert.layouts.gguf.mapping import gguf_targets
from mconv.convert.layouts.gguf.names import name_of, row_order, short_name
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.nodes import Tensor
from mconv.convert.tensors.orders import RowOrder
from mconv.convert.tensors.rows import ArrangedTensor, Rows, Target
from mconv.validate.findings import Finding
from mconv.validate.subject import Subject
from mconv.validate.weights.artifact import Artifact, open_artifact


@dataclass(frozen=True)
class Place:
    """The place of a tensor in a model.

    Attributes:
        role: its role.
        name: canonical (Hugging Face) name.
        gguf: name in a GGUF file.
        layer, expert: numbers; None outside the layers and the experts.
        order: the order of its rows in GGUF; None if it is the same as in Hugging Face.
    """

    role: Role
    name: str
    gguf: str
    layer: int | None
    expert: int | None
    order: RowOrder | None

    @property
    def kind(self) -> str:
        """The name of its role in GGUF files: attn_q, ffn_down_exps, output_norm."""
        return short_name(self.role)

    @property
    def layer_name(self) -> str:
        """The common prefix of the names in its layer; its own name outside the layers."""
        return self.name if self.layer is None else self._head(1)

    @property
    def expert_name(self) -> str:
        """The common prefix of the names of its expert; its own name if it does not belong to an expert."""
        return self.name if self.expert is None else self._head(2)

    @property
    def stack_name(self) -> str:
        """A pattern for the names of all experts of a layer; its own name if it does not belong to an expert."""
        head = self.expert_name
        return self.name if self.expert is None else f"{head.rpartition('.')[0]}.*{self.name.removeprefix(head)}"

    def _head(self, numbers: int) -> str:
        """The name up to its first or its second number."""
        return "".join(re.findall(r".*?\.\d+(?=\.)", self.name)[:numbers])


def places(family: Family, spec: ModelSpec) -> dict[str, Place]:
    """Every place in a model by canonical name: first those outside the layers, then layer by layer."""
    found = {}
    for layer, entries in in_layers(family, spec):
        for named in entries:
            role = named.role
            order = row_order(role, family, spec)
            for number, name in enumerate(canonical_names(named, layer or 0, spec)):
                expert = number if role.is_expert else None
                found[name] = Place(role, name, name_of(role, layer), layer, expert, order)
    return found


@dataclass(frozen=True)
class Pair:
    """A tensor of the artifact and its reference.

    Attributes:
        place: its place in the model.
        found: the artifact's tensor, with its rows in Hugging Face's order.
        reference: the reference's tensor.
        target: the tensor of a GGUF file that contains the reference's rows, including stacked experts. Encoders look
            up importance values by its name.
    """

    place: Place
    found: Tensor
    reference: Tensor
    target: Target


@dataclass(frozen=True)
class Pairs:
    """The tensors to compare, and the faults found before reading any weights.

    Attributes:
        pairs: the pairs, in the order of the family's table.
        missing: canonical names of the reference's tensors that are missing in the artifact.
        extra: names of the artifact's tensors that are not in the reference.
        findings: findings about metadata, and about tensors that are missing, extra or of another shape.
    """

    pairs: tuple[Pair, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    findings: tuple[Finding, ...]


def pair_tensors(subject: Subject, reference: Subject) -> Pairs:
    """Match the tensors of an artifact with those of its reference; only headers are read.

    Args:
        subject: the artifact, a file or folder that exists.

    Raises:
        SourceError, FormatError: the reference cannot be read.
        MappingError: the reference is not a complete model.
    """
    artifact, model = open_artifact(subject, reference), reference.checkpoint
    if not artifact.tensors and any(finding.kind == "unreadable" for finding in artifact.findings):
        return Pairs((), (), (), artifact.findings)
    family = family_named(model.spec.family)
    known = places(family, model.spec)
    wanted = _wanted(artifact, model, known)
    pairs: list[Pair] = []
    missing: list[Place] = []
    misshapen: dict[str, tuple[ShapeError, list[Place]]] = {}
    findings = list(artifact.findings)
    for target in gguf_targets(family, model.spec, wanted):
        for source in target.rows.sources:
            place, found = known[source.name], artifact.tensors.get(source.name)
            fault = artifact.faults.get(source.name)
            if found is not None and found.shape != source.shape:
                fault = ShapeError("", "", source.name, found.shape, source.shape)
            if isinstance(fault, ShapeError):
                misshapen.setdefault(fault.tensor, (fault, []))[1].append(place)
            elif isinstance(fault, SourceError):
                findings.append(Finding("weights", "unreadable", place.name, f"{place.name}: {fault.what}"))
            elif found is None:
                missing.append(place)
            else:
                pairs.append(Pair(place, found, source, target))
    extra = (*(name for name in artifact.tensors if name not in wanted), *artifact.unknown)
    findings += [_misshapen(fault, group) for fault, group in misshapen.values()]
    findings += [*_missing(missing, [known[name] for name in wanted]), *map(_extra, extra)]
    order = {name: number for number, name in enumerate(known)}
    pairs.sort(key=lambda pair: order[pair.place.name])
    return Pairs(tuple(pairs), tuple(place.name for place in missing), extra, tuple(findings))


def _wanted(artifact: Artifact, reference: Checkpoint, known: Mapping[str, Place]) -> dict[str, Tensor]:
    """The tensors of the reference.

    If the output matrix is the token embedding, one layout leaves it out and another stores it twice.
    """
    tensors = dict(reference.tensors)
    names = {place.role: name for name, place in known.items()}
    output, embedding = names[Role.OUTPUT], names[Role.TOKEN_EMBEDDING]
    if reference.spec.tied and output in artifact.tensors and output not in tensors:
        whole = tensors[embedding]
        tensors[output] = ArrangedTensor(output, whole.shape, Rows((whole,)), whole.position)
    elif reference.spec.tied and artifact.tied and output not in artifact.tensors:
        tensors.pop(output, None)
    return tensors


def _missing(missing: Iterable[Place], wanted: Iterable[Place]) -> Iterator[Finding]:
    """One finding per tensor, stack of experts, or completely missing layer."""
    whole, lost = _by(lambda place: place.layer_name, wanted), _by(lambda place: place.layer_name, missing)
    for layer, places_ in lost.items():
        if len(places_) > 1 and len(places_) == len(whole[layer]):
            what = f"{layer}: the layer is missing, all {len(places_)} tensors of it"
            yield Finding("weights", "missing_tensor", layer, what)
            continue
        for gguf, group in _by(lambda place: place.gguf, places_).items():
            subject = _subject(group)
            yield Finding("weights", "missing_tensor", subject, f"{subject} ({gguf}) is missing")


def _extra(name: str) -> Finding:
    return Finding("weights", "extra_tensor", name, f"{name} is not in the reference")


def _misshapen(fault: ShapeError, group: Sequence[Place]) -> Finding:
    """One finding for everything that a stored tensor should contain: the experts of a stack, or a stack of layers."""
    shape, expected = fault.shape, fault.expected
    subject = _subject(group) if len({place.gguf for place in group}) == 1 else fault.tensor
    turned = len(shape) > 1 and shape == (*expected[:-2], expected[-1], expected[-2])
    what = f"{subject}: shape {list(shape)}, but the reference has {list(expected)}"
    if turned:
        return Finding("weights", "transposed", subject, f"{what}: rows and columns are exchanged")
    return Finding("weights", "wrong_shape", subject, what)


def _by(key: Callable[[Place], str], found: Iterable[Place]) -> dict[str, list[Place]]:
    groups: dict[str, list[Place]] = {}
    for place in found:
        groups.setdefault(key(place), []).append(place)
    return groups


def _subject(group: Sequence[Place]) -> str:
    """The name of a tensor, or a pattern for the names of several experts."""
    return group[0].name if len(group) == 1 else group[0].stack_name
