"""Results of the comparison of chat templates, as a whole and per conversation."""

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
    """The result of one conversation.

    Attributes:
        name: the name of the conversation, with the name of the template as prefix unless it is the default one.
        status: `differs`: the tokens differ, or only one side rejects it; `error`: the artifact's template fails.
        tokens: number of tokens in the artifact; None if there is no prompt.
        difference: the first difference of the tokens.
        error: the error of the artifact's side.
        reference_error: the error of the other side.
        known: whether the template that mistral-common generates gives the same prompt as the artifact.
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
        """How it differs, for people."""
        if self.difference is not None:
            return str(self.difference)
        if self.error:
            return f"rejected, but the other side accepts it: {self.error}"
        return f"accepted, but the other side rejects it: {self.reference_error}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready members."""
        return {**vars(self), "difference": self.difference.to_json() if self.difference else None}


@dataclass(frozen=True)
class TemplateResult:
    """How an artifact's chat template compares with the reference.

    Attributes:
        against: what it was compared with.
        same_source: whether the template is the same as the reference's, byte for byte.
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
    """Compare the prompt of one conversation with the expected one.

    Args:
        name: the name of the conversation.
        decode: gives the text of ids.
        vocabularies: the vocabularies of the artifact and the reference.
        generated: the prompt from the template that mistral-common generates.
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
