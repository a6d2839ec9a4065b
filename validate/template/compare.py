"""Compare the tokens of conversations with those of the reference.

If the reference has a chat template, the artifact is compared with it, and the reference's template is also compared
with mistral-common. If it has none, the artifact is compared with mistral-common.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mconv.convert.layouts.layout import ReadOptions
from mconv.validate.findings import Finding, Severity
from mconv.validate.subject import open_subjects
from mconv.validate.template.chat import is_jinja
from mconv.validate.template.conversations import CONVERSATIONS
from mconv.validate.template.prompts import Prompt, mistral_file, mistral_prompts, mistral_template, template_prompts
from mconv.validate.template.results import Against, ConversationResult, TemplateResult, compare_prompts
from mconv.validate.tokens.sources import TokenizerSource
from mconv.validate.tokens.text_tokenizer import TextTokenizer
from mconv.validate.tokens.tokenizers import artifact_tokenizer

_DEFAULT = "default"


def compare_templates(artifact: Path, reference: Path, *, reading: ReadOptions | None = None) -> TemplateResult:
    """Compare the chat templates of an artifact with the reference.

    Args:
        artifact: a GGUF file, a Hugging Face folder or a Megatron folder.
        reference: likewise.
        reading: see `Subject`.

    Raises:
        SourceError, FormatError, MappingError, UsageError: see `open_subjects`.
    """
    with open_subjects((artifact, reference), reading=reading) as (ours, theirs):
        return compare_conversations(ours.tokenizer, theirs.tokenizer)


def compare_conversations(source: TokenizerSource, reference: TokenizerSource) -> TemplateResult:
    """Compare the templates of two opened sources; see `compare_templates`."""
    with artifact_tokenizer(source) as tokenizer:
        return _Comparison(source, reference, tokenizer).result()


class _Comparison:
    """The comparison of an artifact with a reference; every text is encoded with the artifact's tokenizer."""

    def __init__(self, source: TokenizerSource, reference: TokenizerSource, tokenizer: TextTokenizer) -> None:
        self._source, self._reference, self._tokenizer = source, reference, tokenizer
        self._mistral = mistral_file(reference.folder) if reference.folder is not None else None
        self._findings: list[Finding] = []

    def result(self) -> TemplateResult:
        """Compare with the reference's template or mistral-common, if available."""
        measure = self._reference.templates.get(_DEFAULT)
        same_source = measure is not None and self._source.templates.get(_DEFAULT) == measure
        against: Against = "nothing"
        results: list[ConversationResult] = []
        if measure is not None:
            against = "template"
            with artifact_tokenizer(self._reference) as tokenizer:
                own = template_prompts(measure, tokenizer, CONVERSATIONS)
                results += self._against_template(_DEFAULT, measure, own)
                if self._mistral is not None:
                    self._reference_with_mistral_common(self._mistral, own, tokenizer)
        elif self._mistral is not None:
            against = "mistral-common"
            results += self._against_mistral_common(self._mistral)
        elif _DEFAULT in self._source.templates:
            self._find("template_unknown", _DEFAULT, "the reference has nothing to compare this template with", "warn")
        for name in sorted({*self._reference.templates, *self._source.templates} - {_DEFAULT}):
            if name in self._reference.templates:
                results += self._against_template(name, self._reference.templates[name])
            else:
                self._find("template_extra", name, "the reference has no template of this name", "warn")
        if same_source:
            self._find("template_same_source", _DEFAULT, "its text is the reference's, byte for byte", "note")
        return TemplateResult(
            file=str(self._source.path),
            reference=str(self._reference.path),
            against=against,
            same_source=same_source,
            conversations=tuple(results),
            findings=tuple(self._findings),
        )

    def _find(self, kind: str, subject: str, what: str, severity: Severity = "fail") -> None:
        self._findings.append(Finding("template", kind, subject, f"{subject}: {what}", severity))

    def _prompts(self, name: str, missing: Severity) -> list[Prompt] | None:
        """The artifact's prompts for the conversations; None, with a finding, if it has no template."""
        template = self._source.templates.get(name)
        if template is None:
            own = mistral_file(self._source.folder) if self._source.folder is not None else None
            if own is not None and name == _DEFAULT:
                # Who has nothing but Mistral's file talks to the model through mistral-common.
                return mistral_prompts(own, CONVERSATIONS)
            self._find("template_missing", name, "the artifact has no such chat template", missing)
            return None
        if not is_jinja(template):
            what = f"the chat template is the text {template[:40]!r}, the name of one that some programs have built in"
            self._find("template_is_a_name", name, what)
            return None
        return template_prompts(template, self._tokenizer, CONVERSATIONS)

    def _against_template(
        self, name: str, measure: str, own: Sequence[Prompt] | None = None
    ) -> list[ConversationResult]:
        """Compare the artifact's template with the reference's.

        Args:
            measure: the reference's template.
            own: its prompts for the conversations, encoded with the reference's own tokenizer.
        """
        prompts = self._prompts(name, "fail")
        if prompts is None:
            return _without_template(name)
        expected = template_prompts(measure, self._tokenizer, CONVERSATIONS)
        prefix = "" if name == _DEFAULT else f"{name}: "
        vocabularies = (self._source.vocabulary, self._source.vocabulary)
        results = [
            compare_prompts(f"{prefix}{said.name}", said, prompt, measured, self._tokenizer.decode, vocabularies)
            for said, prompt, measured in zip(CONVERSATIONS, prompts, expected, strict=True)
        ]
        self._judge(results, "the reference's template")
        if own is not None:
            self._tokenized_otherwise(results, prompts, own)
        return results

    def _tokenized_otherwise(
        self, results: Sequence[ConversationResult], prompts: Sequence[Prompt], own: Sequence[Prompt]
    ) -> None:
        """Compare the same text in two tokenizers: the template may be right, but the tokens differ."""
        vocabularies = (self._source.vocabulary, self._reference.vocabulary)
        compared = [
            compare_prompts(said.name, said, prompt, measured, self._tokenizer.decode, vocabularies)
            for said, prompt, measured in zip(CONVERSATIONS, prompts, own, strict=True)
        ]
        pairs = zip(results, compared, strict=True)
        self._find_together(
            "prompt_tokens_differ",
            [after for before, after in pairs if before.status == "same" and after.status != "same"],
            "the text is the same as in the reference, but its tokens in the reference's own tokenizer differ",
        )

    def _against_mistral_common(self, path: Path) -> list[ConversationResult]:
        prompts = self._prompts(_DEFAULT, "warn")
        if prompts is None:
            return _without_template(_DEFAULT)
        results = self._with_mistral_common(path, prompts, self._source, self._tokenizer)
        self._judge(results, "mistral-common")
        self._find_together(
            "generated_template_differs",
            [result for result in results if result.known],
            "the template that mistral-common generates gives this too, and mistral-common itself encodes otherwise",
        )
        return results

    def _reference_with_mistral_common(self, path: Path, own: Sequence[Prompt], tokenizer: TextTokenizer) -> None:
        """Warn if the reference's template contradicts mistral-common, independently of the artifact."""
        results = self._with_mistral_common(path, own, self._reference, tokenizer)
        self._find_together(
            "reference_template_differs",
            [result for result in results if result.status in ("differs", "error") and not result.known],
            "the reference's own template, whatever the artifact has, differs from mistral-common",
        )

    def _with_mistral_common(
        self, path: Path, prompts: Sequence[Prompt], source: TokenizerSource, tokenizer: TextTokenizer
    ) -> list[ConversationResult]:
        """Compare a template's prompts with mistral-common and the template that it generates."""
        expected = mistral_prompts(path, CONVERSATIONS)
        template = mistral_template(path)
        generated: Sequence[Prompt | None] = [None] * len(CONVERSATIONS)
        if template is not None:
            generated = template_prompts(template, tokenizer, CONVERSATIONS)
        vocabularies = (source.vocabulary, self._reference.vocabulary)
        return [
            compare_prompts(said.name, said, prompt, measured, tokenizer.decode, vocabularies, other)
            for said, prompt, measured, other in zip(CONVERSATIONS, prompts, expected, generated, strict=True)
        ]

    def _judge(self, results: Sequence[ConversationResult], measure: str) -> None:
        """A finding for each conversation that comes out otherwise, one for all that fail alike."""
        failing: dict[str, list[str]] = {}
        for result in results:
            if result.known or result.status in ("same", "both_refuse"):
                continue
            if result.difference is not None:
                self._find("template_differs", result.name, f"other tokens than by {measure}; {result.how}")
            elif result.status == "error":
                failing.setdefault(result.error, []).append(result.name)
            else:
                self._find("template_strictness", result.name, f"held against {measure}: {result.how}", "warn")
        for error, names in failing.items():
            others = f"; so do {len(names) - 1} other conversations" if len(names) > 1 else ""
            self._find("template_error", names[0], f"{error}{others}")

    def _find_together(self, kind: str, results: Sequence[ConversationResult], what: str) -> None:
        """One warning for several conversations."""
        if results:
            names = ", ".join(result.name for result in results)
            text = f"{names}: {what}; the first {results[0].how}"
            self._findings.append(Finding("template", kind, results[0].name, text, "warn"))


def _without_template(name: str) -> list[ConversationResult]:
    prefix = "" if name == _DEFAULT else f"{name}: "
    error = "there is no chat template"
    return [ConversationResult(f"{prefix}{conversation.name}", "error", error=error) for conversation in CONVERSATIONS]
