"""The token ids of a conversation, from a chat template or from mistral-common."""

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

# Templates that insert the date get this one, so that artifact and reference agree even at midnight.
_NOW = "2025-01-02T12:00:00"
# Appended to an answer that the model continues, to find its end in the output of a template.
_END = "\u2042the end\u2042"
_ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")


@dataclass(frozen=True)
class Prompt:
    """The prompt of one conversation.

    Attributes:
        text: the text, with special tokens spelled out; empty if there is no prompt.
        ids: the token ids; None if there is no prompt.
        error: why there is no prompt.
        refused: whether the conversation is rejected; any other error is a fault.
    """

    text: str
    ids: Sequence[int] | None
    error: str = ""
    refused: bool = False


def template_prompts(template: str, tokenizer: TextTokenizer, conversations: Sequence[Conversation]) -> list[Prompt]:
    """The prompts of conversations with a chat template, which gets the same variables as in transformers."""
    tokens = tokenizer.vocabulary.tokens
    ids = {role: tokenizer.special_id(role) for role in _ROLES}
    spelled = {f"{role}_token": tokens[token_id] for role, token_id in ids.items() if token_id is not None}
    variables = [{**_variables(conversation), **spelled} for conversation in conversations]
    rendered = render_conversations(template, variables, _NOW)
    return [_tokenized(*pair, tokenizer) for pair in zip(rendered, conversations, strict=True)]


def mistral_file(folder: Path) -> Path | None:
    """The tokenizer file of a folder whose prompt format mistral-common knows; None if there is none.

    A tokenizer.model without a version does not count: many models with such a file use another prompt format.
    """
    tekken = folder / "tekken.json"
    return tekken if tekken.is_file() else versioned_sentencepiece(folder)


def mistral_prompts(path: Path, conversations: Iterable[Conversation]) -> list[Prompt]:
    """The prompts of mistral-common, which is authoritative for Mistral's models.

    Args:
        path: the result of `mistral_file`.
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
        except Exception as error:  # raises its own classes, pydantic's, and AssertionError
            prompts.append(Prompt("", None, f"{type(error).__name__}: {str(error).splitlines()[0]}", refused=True))
        else:
            prompts.append(Prompt(tokenizer.decode(ids, special_token_policy=SpecialTokenPolicy.KEEP), ids))
    return prompts


def mistral_template(path: Path) -> str | None:
    """The chat template that mistral-common generates for a tokenizer; None if it generates none."""
    return _mistral(path, path.stat().st_mtime_ns)[1]


@functools.lru_cache(maxsize=2)
def _mistral(path: Path, _changed: int) -> tuple[MistralTokenizer, str | None]:
    """A tokenizer and its generated template, cached for the next artifact: reading them takes seconds."""
    from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    try:
        template = convert_tokenizer_to_chat_template(path)
    except Exception:  # some versions need settings that are missing in the file
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
    """A message with its reasoning under both names that templates read, as in transformers."""
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
    except SourceError as error:  # a prompt that cannot be tokenized is a fault of the template too
        return Prompt("", None, f"the output of the chat template cannot be tokenized: {error.what}")


def _plain(content: Any) -> Any:
    """A copy as plain JSON values: lists and objects, without shared references."""
    return json.loads(json.dumps(content))
