"""Findings for tensors that contain each other's values: one per pair, expert or layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from mconv.validate.findings import Finding
from mconv.validate.weights.pairs import Place


def moved_findings(moves: Mapping[str, str], places: Mapping[str, Place]) -> list[Finding]:
    """Findings about tensors that contain the values of other tensors.

    Args:
        moves: canonical name to that of the tensor of the reference whose values it contains.
        places: every tensor that was compared, by canonical name.
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name, other in moves.items():
        unit, other_unit = _units(places[name], places[other])
        kind = _kind(places[name], places[other], moves)
        # The second of two exchanged tensors is reported with the first.
        if moves.get(other) != name or (kind, other_unit, unit) not in groups:
            groups.setdefault((kind, unit, other_unit), []).append(name)
    units = ((place.layer_name, place.expert_name, place.stack_name) for place in places.values())
    sizes = Counter(unit for names in units for unit in set(names))
    findings = []
    for (kind, unit, other_unit), names in groups.items():
        is_mutual = all(moves.get(moves[name]) == name for name in names)
        if len(names) > 1 and 2 * len(names) >= sizes[unit]:
            what = f"{unit}: {_said(kind, other_unit, is_mutual)} ({len(names)} tensors)"
            findings.append(Finding("weights", kind, unit, what))
            continue
        for name in names:
            what = f"{name} ({places[name].gguf}): {_said(kind, moves[name], is_mutual)}"
            findings.append(Finding("weights", kind, name, what))
    return findings


def _kind(place: Place, other: Place, moves: Collection[str]) -> str:
    if other.name not in moves:
        return "duplicated"
    is_expert = place.layer == other.layer and place.role is other.role and place.expert != other.expert
    return "experts_swapped" if is_expert else "swapped"


def _units(place: Place, other: Place) -> tuple[str, str]:
    """The units in which the two tensors differ: layers, experts, stacks of experts."""
    if place.layer != other.layer:
        return place.layer_name, other.layer_name
    if place.expert != other.expert:
        return place.expert_name, other.expert_name
    return place.stack_name, other.stack_name


def _said(kind: str, other: str, is_mutual: bool) -> str:
    if kind == "duplicated":
        return f"holds {other} once more"
    return f"changed places with {other}" if is_mutual else f"holds {other}, whose own place holds something else"
