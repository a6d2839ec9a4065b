"""Compare two vocabularies as values.

Padding tokens at the end, for rows of the embedding matrix without a token, are ignored: converters pad vocabularies to
different sizes and with different names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mconv.convert.tokenizer import TokenType, Vocabulary
from mconv.validate.findings import Finding, Severity

ROLES = ("bos", "eos", "eot", "unk", "pad")
_PADDING = re.compile(r"\[PAD\d+\]")
_SPECIAL = {TokenType.CONTROL, TokenType.UNKNOWN}
_LEAST_SHIFTED = 4  # tokens; fewer have only been exchanged


@dataclass(frozen=True)
class Shift:
    """Tokens whose ids are shifted by the same distance.

    Attributes:
        first: the id of the first of them in the reference.
        distance: how much larger their ids are in the artifact.
        count: the number of these tokens.
    """

    first: int
    distance: int
    count: int


@dataclass(frozen=True)
class VocabularyDifferences:
    """The differences between the vocabularies of an artifact and the reference, not yet judged.

    Attributes:
        other_model: one merges by score, the other by rank.
        size: tokens of the artifact, without padding.
        reference_size: tokens of the reference, without padding.
        other_texts: ids whose texts differ.
        shift: the shift that most of these have in common, if any.
        other_types: ids of ordinary tokens in the reference whose types differ.
        control_as_text: ids of control tokens of the reference that are user-defined tokens in the artifact.
        missing_merges: pairs that only the reference has.
        extra_merges: pairs that only the artifact has.
        moved_merges: common pairs whose rank, among the common pairs, is different in the artifact.
        other_score_order: whether tokens would be merged in another order by their scores.
    """

    other_model: bool
    size: int
    reference_size: int
    other_texts: tuple[int, ...] = field(repr=False)
    shift: Shift | None
    other_types: tuple[int, ...] = field(repr=False)
    control_as_text: tuple[int, ...] = field(repr=False)
    missing_merges: tuple[str, ...] = field(repr=False)
    extra_merges: tuple[str, ...] = field(repr=False)
    moved_merges: tuple[str, ...] = field(repr=False)
    other_score_order: bool

    @property
    def moved(self) -> bool:
        """Whether tokens are shifted, or most of them differ."""
        return self.other_model or self.shift is not None or 2 * len(self.other_texts) > self.reference_size

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members: counts instead of lists."""
        return {
            "other_model": self.other_model,
            "size": self.size,
            "reference_size": self.reference_size,
            "other_texts": len(self.other_texts),
            "shift": asdict(self.shift) if self.shift else None,
            "other_types": len(self.other_types),
            "control_as_text": len(self.control_as_text),
            "missing_merges": len(self.missing_merges),
            "extra_merges": len(self.extra_merges),
            "moved_merges": len(self.moved_merges),
            "other_score_order": self.other_score_order,
        }


def vocabulary_differences(artifact: Vocabulary, reference: Vocabulary) -> VocabularyDifferences:
    """Compare sizes, texts, types, merges and scores."""
    size, reference_size = _size(artifact), _size(reference)
    both = range(min(size, reference_size))
    other_texts = tuple(n for n in both if artifact.tokens[n] != reference.tokens[n])
    moved = set(other_texts)
    merges, reference_merges = dict.fromkeys(artifact.merges or ()), dict.fromkeys(reference.merges or ())
    return VocabularyDifferences(
        other_model=artifact.model != reference.model,
        size=size,
        reference_size=reference_size,
        other_texts=other_texts,
        shift=_shift(artifact.tokens[:size], reference.tokens, other_texts),
        other_types=tuple(n for n in both if n not in moved and _other_type(artifact.types[n], reference.types[n])),
        control_as_text=tuple(
            n for n in both if (artifact.types[n], reference.types[n]) == (TokenType.USER_DEFINED, TokenType.CONTROL)
        ),
        missing_merges=tuple(merge for merge in reference_merges if merge not in merges),
        extra_merges=tuple(merge for merge in merges if merge not in reference_merges),
        moved_merges=_moved(merges, reference_merges),
        other_score_order=not moved and _other_score_order(artifact, reference, both),
    )


def vocabulary_findings(
    differences: VocabularyDifferences,
    artifact: Vocabulary,
    reference: Vocabulary,
    special_ids: Mapping[str, tuple[int | None, int | None]],
    *,
    texts_differ: bool,
) -> list[Finding]:
    """The findings for the differences.

    Args:
        special_ids: by role, the id in the artifact and in the reference.
        texts_differ: whether the ids of any text differ; a different rule for splitting text that has no visible effect
            does not fail the artifact.
    """
    if differences.other_model:
        what = f"tokenizer model is {artifact.model!r}, but {reference.model!r} in the reference"
        return [Finding("tokens", "tokenizer_model_differs", "tokenizer model", what)]
    if shift := differences.shift:
        return [_shifted(shift, reference)]
    if differences.moved:
        return _size_and_tokens(differences, artifact, reference)
    return [
        *_size_and_tokens(differences, artifact, reference),
        *_rules(differences, artifact, reference, "fail" if texts_differ else "warn"),
        *_special_ids(artifact, reference, special_ids),
    ]


def _size(vocabulary: Vocabulary) -> int:
    """Tokens up to the last that is not padding."""
    size = len(vocabulary.tokens)
    while size and (vocabulary.types[size - 1] is TokenType.UNUSED or _PADDING.fullmatch(vocabulary.tokens[size - 1])):
        size -= 1
    return size


def _shift(tokens: Sequence[str], reference: Sequence[str], differing: Sequence[int]) -> Shift | None:
    places = {text: place for place, text in enumerate(tokens)}
    distances = Counter(places[reference[n]] - n for n in differing if reference[n] in places)
    if not distances:
        return None
    distance, count = distances.most_common(1)[0]
    if count < _LEAST_SHIFTED or 2 * count <= len(differing):
        return None
    first = next(n for n in differing if places.get(reference[n], n) - n == distance)
    return Shift(first, distance, count)


def _moved(merges: Mapping[str, None], reference: Mapping[str, None]) -> tuple[str, ...]:
    """Merges whose rank among the common merges differs."""
    ours = (merge for merge in merges if merge in reference)
    theirs = (merge for merge in reference if merge in merges)
    return tuple(merge for other, merge in zip(ours, theirs, strict=True) if other != merge)


def _other_type(kind: TokenType, reference: TokenType) -> bool:
    """Whether an ordinary token has another type. Special tokens are checked by encoding them instead."""
    return kind is not reference and reference not in _SPECIAL and reference is not TokenType.USER_DEFINED


def _other_score_order(artifact: Vocabulary, reference: Vocabulary, ids: Sequence[int]) -> bool:
    """Whether the tokens that result from merges have another order by score."""
    ours, theirs = artifact.scores, reference.scores
    if ours is None or theirs is None:
        return False
    made = [
        n for n in ids if artifact.types[n] is reference.types[n] is TokenType.NORMAL and len(reference.tokens[n]) > 1
    ]
    return sorted(made, key=lambda n: -ours[n]) != sorted(made, key=lambda n: -theirs[n])


def _shifted(shift: Shift, reference: Vocabulary) -> Finding:
    token = reference.tokens[shift.first]
    what = (
        f"{token!r} has id {shift.first + shift.distance} and not {shift.first}: from here on the vocabulary is "
        f"shifted by {shift.distance:+d}, {shift.count} tokens in all"
    )
    return Finding("tokens", "vocabulary_shifted", token, what)


def _size_and_tokens(differences: VocabularyDifferences, artifact: Vocabulary, reference: Vocabulary) -> list[Finding]:
    findings = []
    if differences.size != differences.reference_size:
        what = f"size of the vocabulary is {differences.size}, but {differences.reference_size} in the reference"
        findings.append(Finding("tokens", "vocabulary_size", "size of the vocabulary", what))
    if differences.other_texts:
        first = differences.other_texts[0]
        token = reference.tokens[first]
        what = f"{token!r} has id {first} in the reference, which is {artifact.tokens[first]!r} here"
        findings.append(Finding("tokens", "token_differs", token, what + _others(differences.other_texts)))
    if differences.other_types:
        first = differences.other_types[0]
        kinds = f"{_name(artifact.types[first])} here, {_name(reference.types[first])} in the reference"
        token = reference.tokens[first]
        what = f"{token!r} (id {first}) is of type {kinds}{_others(differences.other_types)}"
        findings.append(Finding("tokens", "token_type_differs", token, what, "warn"))
    if differences.control_as_text:
        token = reference.tokens[differences.control_as_text[0]]
        what = f"{token!r} is a user-defined token, not a control token: llama.cpp also finds it in a user's text"
        what += _others(differences.control_as_text)
        findings.append(Finding("tokens", "control_token_as_text", token, what, "warn"))
    return findings


def _rules(
    differences: VocabularyDifferences, artifact: Vocabulary, reference: Vocabulary, severity: Severity
) -> list[Finding]:
    """Compare the rules by which text is split."""

    def finding(kind: str, subject: str, what: str) -> Finding:
        effect = "" if severity == "fail" else "; no text was found that comes out otherwise"
        return Finding("tokens", kind, subject, f"{subject} {what}{effect}", severity)

    findings = []
    if artifact.pre != reference.pre:
        what = f"is {artifact.pre!r}, but {reference.pre!r} in the reference"
        findings.append(finding("pre_tokenizer_differs", "pre-tokenizer", what))
    missing, extra = differences.missing_merges, differences.extra_merges
    if missing or extra:
        subject = (missing or extra)[0]
        what = f"is the first of {len(missing)} missing and {len(extra)} additional merges"
        findings.append(finding("merges_differ", subject, what))
    elif differences.moved_merges:
        subject = differences.moved_merges[0]
        what = f"is the first of {len(differences.moved_merges)} merges in whose place another is made"
        findings.append(finding("merges_differ", subject, what))
    if differences.other_score_order:
        findings.append(finding("scores_differ", "order of the scores", "is not that of the reference"))
    ours, theirs = _puts_space(artifact), _puts_space(reference)
    if ours is not theirs:
        what = f"added before a text: {'yes' if ours else 'no'}, in the reference: {'yes' if theirs else 'no'}"
        findings.append(finding("space_prefix_differs", "space", what))
    return findings


def _special_ids(
    artifact: Vocabulary, reference: Vocabulary, special_ids: Mapping[str, tuple[int | None, int | None]]
) -> list[Finding]:
    findings = []
    for role, (ours, theirs) in special_ids.items():
        needed = role in ("bos", "eos")
        if theirs is None or ours == theirs or (ours is None and not needed):
            continue
        here = "missing" if ours is None else f"{artifact.tokens[ours]!r} (id {ours})"
        what = f"{role} is {here}, but {reference.tokens[theirs]!r} (id {theirs}) in the reference"
        findings.append(Finding("tokens", "special_id_differs", role, what, "fail" if needed else "warn"))
    return findings


def _puts_space(vocabulary: Vocabulary) -> bool:
    """Whether a space is added before a text; llama.cpp does not do this for byte-level BPE."""
    return vocabulary.model == "llama" and vocabulary.add_space_prefix is not False


def _others(ids: Sequence[int]) -> str:
    return f"; and {len(ids) - 1} more" if len(ids) > 1 else ""


def _name(kind: TokenType) -> str:
    return kind.name.lower().replace("_", " ")
