"""Compare the token ids of an artifact with those of the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mconv.convert.layouts.layout import ReadOptions
from mconv.inference.chunks import read_text
from mconv.validate.findings import Finding
from mconv.validate.subject import open_subjects
from mconv.validate.tokens.corpus import Group, corpus, special_tokens, vocabulary_groups
from mconv.validate.tokens.differences import Difference, first_difference
from mconv.validate.tokens.known_differences import KnownDifferences
from mconv.validate.tokens.sources import TokenizerSource
from mconv.validate.tokens.special_tokens import shortened, surroundings, wrong_special_tokens
from mconv.validate.tokens.text_tokenizer import TextTokenizer, Variant
from mconv.validate.tokens.tokenizers import artifact_tokenizer, reference_tokenizer
from mconv.validate.tokens.vocabularies import ROLES, VocabularyDifferences, vocabulary_differences, vocabulary_findings

_PASSAGE = 2000  # characters of a text file that are compared at once
_PROBED_MERGES = 200


@dataclass(frozen=True)
class GroupResult:
    """The result of one group of texts.

    Attributes:
        tokens: number of ids of all its texts in the reference.
        differences: number of texts with different ids for no known reason.
        first: the first of these differences.
        known: number of texts with different ids, by the name of the known reason.
        undecoded: the first text whose ids are the same but are decoded to a different text.
    """

    name: str
    texts: int
    tokens: int = 0
    differences: int = 0
    first: Difference | None = None
    known: Mapping[str, int] = field(default_factory=dict)
    undecoded: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        return {**vars(self), "first": self.first.to_json() if self.first else None}


@dataclass(frozen=True)
class TokensResult:
    """How an artifact's tokenizer compares with the reference's.

    Attributes:
        tokenizer: the library that runs it.
        reference_tokenizer: the library that runs the reference's.
        special_tokens: how many were checked.
        wrong_special_tokens: those that do not become the single id of the reference.
        special_ids: by role, the artifact's id and the reference's.
    """

    file: str
    reference: str
    tokenizer: str
    reference_tokenizer: str
    groups: tuple[GroupResult, ...]
    special_tokens: int
    wrong_special_tokens: tuple[str, ...]
    vocabulary: VocabularyDifferences
    special_ids: Mapping[str, tuple[int | None, int | None]]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        roles = {role: {"artifact": ours, "reference": theirs} for role, (ours, theirs) in self.special_ids.items()}
        return {
            "file": self.file,
            "reference": self.reference,
            "tokenizer": self.tokenizer,
            "reference_tokenizer": self.reference_tokenizer,
            "texts": sum(group.texts for group in self.groups),
            "tokens": sum(group.tokens for group in self.groups),
            "groups": [group.to_json() for group in self.groups],
            "special_tokens": {"checked": self.special_tokens, "wrong": len(self.wrong_special_tokens)},
            "vocabulary": {**self.vocabulary.to_json(), "special_ids": roles},
            "findings": [finding.to_json() for finding in self.findings],
        }


def compare_tokens(
    artifact: Path, reference: Path, *, reading: ReadOptions | None = None, texts: Sequence[Path] = ()
) -> TokensResult:
    """Compare the tokenizer of an artifact with that of the reference.

    Args:
        artifact: a GGUF file, a Hugging Face folder or a Megatron folder.
        reference: likewise.
        reading: see `Subject`.
        texts: files to tokenize besides the texts that the project has.

    Raises:
        SourceError, FormatError, MappingError, UsageError: see `open_subjects`; a text that is not UTF-8.
    """
    with open_subjects((artifact, reference), reading=reading) as (ours, theirs):
        return compare_tokenizers(ours.tokenizer, theirs.tokenizer, [text_group(path) for path in texts])


def text_group(path: Path) -> Group:
    """A text file in passages of whole lines, so that one difference does not hide others.

    Raises:
        SourceError: it is not UTF-8.
    """
    passages, passage = [], ""
    for line in read_text(path).splitlines(keepends=True):
        if passage and len(passage) + len(line) > _PASSAGE:
            passages.append(passage)
            passage = ""
        passage += line
    return Group(f"text: {path.name}", (*passages, passage))


def compare_tokenizers(
    source: TokenizerSource, reference_source: TokenizerSource, texts: Sequence[Group]
) -> TokensResult:
    """Compare two opened tokenizers; see `compare_tokens`."""
    with artifact_tokenizer(source) as artifact, reference_tokenizer(reference_source, beside=artifact) as reference:
        vocabulary = vocabulary_differences(source.vocabulary, reference_source.vocabulary)
        groups = [
            *corpus(),
            *vocabulary_groups(reference_source.vocabulary, reference.decode),
            *_merge_groups(vocabulary, reference),
            *texts,
        ]
        known = KnownDifferences(artifact, reference)
        reasons: dict[str, _Reason] = {}
        results = tuple(_compare_group(group, artifact, reference, known, reasons) for group in groups)
        wrong = list(wrong_special_tokens(artifact, reference))
        special_ids = {role: (artifact.special_id(role), reference.special_id(role)) for role in ROLES}
        findings = vocabulary_findings(
            vocabulary,
            source.vocabulary,
            reference_source.vocabulary,
            special_ids,
            texts_differ=any(result.differences for result in results),
        )
        # If all ids are shifted, other differences are a consequence.
        if not vocabulary.moved:
            findings += [*shortened(wrong), *surroundings(artifact, reference), *_text_findings(results)]
            findings += [reason.finding() for reason in reasons.values()]
    notes = ((source.path, source.vocabulary), (reference_source.path, reference_source.vocabulary))
    return TokensResult(
        file=str(source.path),
        reference=str(reference_source.path),
        tokenizer=artifact.name,
        reference_tokenizer=reference.name,
        groups=results,
        special_tokens=len(special_tokens(reference_source.vocabulary)),
        wrong_special_tokens=tuple(finding.subject for finding in wrong),
        vocabulary=vocabulary,
        special_ids=special_ids,
        findings=(*findings, *(_note(path, text) for path, value in notes for text in value.notes)),
    )


@dataclass
class _Reason:
    """A known difference, and where it occurred."""

    variant: Variant
    first: Difference
    groups: Counter[str] = field(default_factory=Counter)

    def finding(self) -> Finding:
        count, (name, *others) = self.groups.total(), self.groups
        where = f"{name}{f' and {len(others)} other groups' if others else ''}"
        what = f"{where}: {count} texts have other ids, since {self.variant.reason}; the first {self.first}"
        return Finding("tokens", self.variant.kind, name, what, "warn")


def _compare_group(
    group: Group,
    artifact: TextTokenizer,
    reference: TextTokenizer,
    known: KnownDifferences,
    reasons: dict[str, _Reason],
) -> GroupResult:
    result = GroupResult(group.name, len(group.texts))
    explained: Counter[str] = Counter()
    vocabularies = (artifact.vocabulary, reference.vocabulary)
    for text in group.texts:
        ids = artifact.encode(text, parse_special=group.parse_special)
        expected = reference.encode(text, parse_special=group.parse_special)
        result = replace(result, tokens=result.tokens + len(expected))
        if ids == expected:
            if result.undecoded is None and not group.parse_special and artifact.decode(ids) != reference.decode(ids):
                result = replace(result, undecoded=text)
            continue
        variant = known.explain(text, ids, expected, parse_special=group.parse_special)
        if variant is None:
            first = result.first or first_difference(text, ids, expected, reference.decode, vocabularies)
            result = replace(result, differences=result.differences + 1, first=first)
            continue
        if variant.kind not in reasons:
            shown = first_difference(text, ids, expected, reference.decode, vocabularies)
            reasons[variant.kind] = _Reason(variant, shown)
        reasons[variant.kind].groups[group.name] += 1
        explained[variant.kind] += 1
    return replace(result, known=dict(explained))


def _merge_groups(vocabulary: VocabularyDifferences, reference: TextTokenizer) -> Iterator[Group]:
    """Texts that exercise merges that are missing in the artifact or have another rank."""
    ids = {token: number for number, token in enumerate(reference.vocabulary.tokens)}
    texts = []
    for merge in (*vocabulary.missing_merges, *vocabulary.moved_merges)[:_PROBED_MERGES]:
        made = ids.get(merge.replace(" ", ""))
        text = reference.decode([made]) if made is not None else ""
        if text and "\ufffd" not in text:
            texts += [text, f"x{text}", f"{text}x", f"{text}{text}", f" {text}s", f"un{text}ing"]
    if texts:
        yield Group("other merges", tuple(texts))


def _text_findings(results: Sequence[GroupResult]) -> Iterator[Finding]:
    for result in results:
        if result.first is not None:
            count = f"{result.differences} of {result.texts} texts have other ids"
            what = f"{result.name}: {count}; the first {result.first}"
            yield Finding("tokens", "text_differs", result.name, what)
        if result.undecoded is not None:
            what = f"{result.name}: the ids of {result.undecoded[:60]!r} do not become that text again as they do there"
            yield Finding("tokens", "decode_differs", result.name, what)


def _note(path: Path, text: str) -> Finding:
    return Finding("tokens", "note", path.name, f"{path.name}: {text}", "note")
