"""What a comparison of chat templates found, and how one conversation compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mconv.convert.tokenizer import Vocabulary
from mconv.validate.findings import Finding
from mconv.validate.template.conversations import Conversation
from mconv.validate.template.prompts import Prompt
from mconv.validate.tokens.differences import Difference, first_difference

Status = Literal["same", "differs", "both_refuse", "error"]
Against = Literal["template", "mistral-common", "nothing"]


@dataclass(frozen=True)
class ConversationResult:
    """What became of one conversation.

    Attributes:
        name: of the conversation, after the name of the template where it is not the one to use unasked.
        status: `differs`: in its tokens, or in that one side refuses it; `error`: the artifact's template fails.
        tokens: how many the artifact has for it; None where it has none.
        difference: where the tokens part.
        error: what the artifact's side fails with.
        reference_error: what the reference's side fails with.
        known: the template that mistral-common generates gives the same as the artifact's.
    """

    name: str
    status: Status
    tokens: int | None = None
    difference: Difference | None = None
    error: str = ""
    reference_error: str = ""
    known: bool = False

    @property
    def how(self) -> str:
        """In what it differs, for a person."""
        if self.difference is not None:
            return str(self.difference)
        if self.error:
            return f"refused, where the other side takes it: {self.error}"
        return f"taken, where the other side refuses it: {self.reference_error}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        return {**vars(self), "difference": self.difference.to_json() if self.difference else None}


@dataclass(frozen=True)
class TemplateResult:
    """How an artifact's chat template compares with the reference.

    Attributes:
        against: what it was held against.
        same_source: whether the template is the reference's, byte for byte.
    """

    file: str
    reference: str
    against: Against
    same_source: bool
    conversations: tuple[ConversationResult, ...]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        return {
            **vars(self),
            "conversations": [conversation.to_json() for conversation in self.conversations],
            "findings": [finding.to_json() for finding in self.findings],
        }


def compare_prompts(
    name: str,
    conversation: Conversation,
    prompt: Prompt,
    expected: Prompt,
    decode: Callable[[Sequence[int]], str],
    vocabularies: tuple[Vocabulary, Vocabulary],
    generated: Prompt | None = None,
) -> ConversationResult:
    """Hold what became of one conversation against what should have.

    Args:
        name: to call it by.
        decode: the text of some of the ids.
        vocabularies: that the ids of the two are of.
        generated: what the template that mistral-common generates makes of it.
    """
    if prompt.ids is None and expected.ids is None:
        return ConversationResult(name, "both_refuse", error=prompt.error, reference_error=expected.error)
    known = generated is not None and generated.ids == prompt.ids
    if prompt.ids is None:
        refuses = prompt.refused and (conversation.odd or known)
        return ConversationResult(name, "differs" if refuses else "error", error=prompt.error, known=known)
    tokens = len(prompt.ids)
    if expected.ids is None:
        return ConversationResult(name, "differs", tokens, reference_error=expected.error, known=known)
    if prompt.ids == expected.ids:
        return ConversationResult(name, "same", tokens)
    difference = first_difference(prompt.text, prompt.ids, expected.ids, decode, vocabularies, expected.text)
    return ConversationResult(name, "differs", tokens, difference, known=known)
