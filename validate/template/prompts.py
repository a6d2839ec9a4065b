"""What a model reads of a conversation: the ids that a chat template leads to, or those of mistral-common."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.errors import SourceError
from mconv.convert.tokenizer import versioned_sentencepiece
from mconv.validate.template.chat import Rendered, render_conversations
from mconv.validate.template.conversations import Conversation

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    from mconv.validate.tokens.text_tokenizer import TextTokenizer

# Templates that tell the date tell this one, so that two sides that render at midnight agree.
_NOW = "2025-01-02T12:00:00"
# Put after the text that is to be gone on with, to find its end in what a template makes of it.
_END = "\u2042the end\u2042"
_ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")


@dataclass(frozen=True)
class Prompt:
    """One conversation as a model gets it.

    Attributes:
        text: as text, special tokens spelled out; empty where there is none.
        ids: None where there is none.
        error: why there is none.
        refused: whether the conversation is refused; any other error is a fault.
    """

    text: str
    ids: Sequence[int] | None
    error: str = ""
    refused: bool = False


def template_prompts(template: str, tokenizer: TextTokenizer, conversations: Sequence[Conversation]) -> list[Prompt]:
    """What becomes of conversations under a chat template, with the variables that transformers gives it."""
    tokens = tokenizer.vocabulary.tokens
    ids = {role: tokenizer.special_id(role) for role in _ROLES}
    spelled = {f"{role}_token": tokens[token_id] for role, token_id in ids.items() if token_id is not None}
    variables = [{**_variables(conversation), **spelled} for conversation in conversations]
    rendered = render_conversations(template, variables, _NOW)
    return [_tokenized(*pair, tokenizer) for pair in zip(rendered, conversations, strict=True)]


def mistral_file(folder: Path) -> Path | None:
    """The tokenizer of a folder that mistral-common knows the prompt format of; None where there is none.

    A tokenizer.model without a version is none: many models that have one talk in a format of their own.
    """
    tekken = folder / "tekken.json"
    return tekken if tekken.is_file() else versioned_sentencepiece(folder)


def mistral_prompts(path: Path, conversations: Iterable[Conversation]) -> list[Prompt]:
    """What mistral-common, the source of truth for Mistral's models, makes of conversations.

    Args:
        path: a file that `mistral_file` finds.
    """
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

    tokenizer, _ = _mistral(path, path.stat().st_mtime_ns)
    prompts = []
    for conversation in conversations:
        messages, tools = _plain(conversation.messages), _plain(conversation.tools)
        try:
            request = ChatCompletionRequest.from_openai(messages, tools, conversation.continues)
            ids = tokenizer.encode_chat_completion(request).tokens
        except Exception as error:  # its own classes, pydantic's, and asserts
            prompts.append(Prompt("", None, f"{type(error).__name__}: {str(error).splitlines()[0]}", refused=True))
        else:
            prompts.append(Prompt(tokenizer.decode(ids, special_token_policy=SpecialTokenPolicy.KEEP), ids))
    return prompts


def mistral_template(path: Path) -> str | None:
    """The chat template that mistral-common generates for a tokenizer, None where it generates none."""
    return _mistral(path, path.stat().st_mtime_ns)[1]


@functools.lru_cache(maxsize=2)
def _mistral(path: Path, _changed: int) -> tuple[MistralTokenizer, str | None]:
    """A tokenizer and its generated template, kept for the next artifact: reading them takes seconds."""
    from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    try:
        template = convert_tokenizer_to_chat_template(path)
    except Exception:  # versions that need settings which the file lacks
        template = None
    return MistralTokenizer.from_file(path), template


def _variables(conversation: Conversation) -> dict[str, Any]:
    messages = [_with_aliases(message) for message in _plain(conversation.messages)]
    if conversation.continues:
        messages[-1]["content"] += _END
    return {
        "messages": messages,
        "tools": _plain(conversation.tools),
        "documents": None,
        "add_generation_prompt": not conversation.continues,
    }


def _with_aliases(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose reasoning is there under both names that templates read, as transformers gives it."""
    reasoning = message.get("reasoning_content")
    return message if reasoning is None else {"thinking": reasoning, **message}


def _tokenized(rendered: Rendered, conversation: Conversation, tokenizer: TextTokenizer) -> Prompt:
    text = rendered.text
    if text is None:
        return Prompt("", None, f"the chat template fails: {rendered.error}", rendered.refused)
    if conversation.continues:
        text, mark, _ = text.partition(_END)
        if not mark:
            return Prompt("", None, "the chat template leaves out the answer that was begun", refused=True)
    try:
        return Prompt(text, tokenizer.encode_prompt(text))
    except SourceError as error:  # a prompt that no tokenizer takes is as much of the template's making
        return Prompt("", None, f"the chat template gives what cannot be tokenized: {error.what}")


def _plain(content: Any) -> Any:
    """The same as JSON has it: lists and objects, and none that anybody else holds."""
    return json.loads(json.dumps(content))
