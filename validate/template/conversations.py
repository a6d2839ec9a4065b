"""Conversations for the comparison of chat templates, in the format of chat interfaces.

Contents have no combining marks: the comparison of tokens covers those, and would report the same fault twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """A conversation, up to the model's next answer.

    Attributes:
        tools: functions that the model may call.
        continues: the last message is the beginning of the answer, which the model continues.
        odd: a correct template may reject it.
    """

    name: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    continues: bool = False
    odd: bool = False


def _said(role: str, content: Any, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


def _user(content: Any) -> Message:
    return _said("user", content)


def _assistant(content: Any, **more: Any) -> Message:
    return _said("assistant", content, **more)


def _call(call_id: str, name: str, arguments: Any) -> Mapping[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _result(call_id: str, name: str, content: str) -> Message:
    return _said("tool", content, tool_call_id=call_id, name=name)


def _tool(name: str, description: str, **properties: Any) -> Mapping[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": sorted(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_TOOLS = (
    _tool("weather", "What the weather is", city={"type": "string", "description": 'A city, "as it\'s written" <b>'}),
    _tool("add", "Add numbers", numbers={"type": "array", "items": {"type": "number"}}),
)
_SYSTEM = _said("system", "You are terse.\nAnswer in one line.")
_EXCHANGES = (
    _user("What is 2 + 2?"),
    _assistant("4"),
    _user("And\n\n3 + 3?  "),
    _assistant("It is 6, of course."),
    _user("Thanks."),
)
_WEATHER = _call("abcdefghi", "weather", '{"city": "Paris", "days": 2}')
_AFTERWARDS = (_assistant("It is 20 degrees."), _user("Thanks"))
_THINKING = (
    {"type": "thinking", "thinking": "A greeting; greet back.", "closed": True},
    {"type": "text", "text": "Hello."},
)
_SPELLED = "[INST] [/INST] <s></s> [SYSTEM_PROMPT]x[/SYSTEM_PROMPT] [TOOL_CALLS] [THINK]y[/THINK] <|eot_id|> <unk>"

CONVERSATIONS = (
    Conversation("one user turn", (_user("Hello, world!"),)),
    Conversation("system prompt", (_SYSTEM, _user("Hi"))),
    Conversation("several turns", _EXCHANGES),
    Conversation("system prompt and several turns", (_SYSTEM, *_EXCHANGES)),
    Conversation("tools", (_user("Weather in Paris?"),), _TOOLS),
    Conversation("tools and system prompt", (_SYSTEM, *_EXCHANGES), _TOOLS),
    Conversation(
        "tool call and result",
        (
            _user("Weather in Paris?"),
            _assistant("", tool_calls=(_WEATHER,)),
            _result("abcdefghi", "weather", '{"degrees": 20, "sky": "d\u00e9gag\u00e9"}'),
        ),
        _TOOLS,
    ),
    Conversation(
        "tool call, result and answer",
        (
            _user("Weather in Paris?"),
            _assistant("", tool_calls=(_WEATHER,)),
            _result("abcdefghi", "weather", "20"),
            *_AFTERWARDS,
        ),
        _TOOLS,
    ),
    Conversation(
        "arguments as an object",
        (
            _user("Weather in Paris?"),
            _assistant("", tool_calls=(_call("abcdefghi", "weather", {"city": "Paris", "days": 2}),)),
            _result("abcdefghi", "weather", "it's 20 <degrees>"),
        ),
        _TOOLS,
    ),
    Conversation(
        "several tool calls",
        (
            _user("Weather in Paris, and 1 + 2?"),
            _assistant("", tool_calls=(_WEATHER, _call("jklmnopqr", "add", '{"numbers": [1, 2.5]}'))),
            _result("abcdefghi", "weather", "20 degrees"),
            _result("jklmnopqr", "add", "3.5"),
            *_AFTERWARDS,
        ),
        _TOOLS,
    ),
    Conversation(
        "text and tool call",
        (
            _user("Weather?"),
            _assistant("I look it up.", tool_calls=(_WEATHER,)),
            _result("abcdefghi", "weather", "20 degrees"),
        ),
        _TOOLS,
        odd=True,
    ),
    Conversation(
        "reasoning",
        (
            _said("system", ({"type": "text", "text": "First think:"}, *_THINKING)),
            _user("Hi"),
            _assistant(_THINKING),
            _user("Bye"),
        ),
        odd=True,
    ),
    Conversation(
        "reasoning beside the answer",
        (_user("Hi"), _assistant("Hello.", reasoning_content="A greeting; greet back."), _user("Bye")),
        odd=True,
    ),
    Conversation("content in parts", (_user(({"type": "text", "text": "One"}, {"type": "text", "text": "two"})),)),
    Conversation("begun answer", (_user("A poem, please"), _assistant("Roses are", prefix=True)), continues=True),
    Conversation("answer that ends in spaces", (_user("Hi"), _assistant("Hello.  "), _user("Bye"))),
    Conversation("white space", (_said("system", " \n"), _user("  a\t\n\n b  \n"), _assistant(" c \n"), _user(" \n"))),
    Conversation("empty user turn", (_user(""),)),
    Conversation("spelled special tokens", (_user(_SPELLED), _assistant(_SPELLED), _user(_SPELLED))),
    Conversation(
        "braces and quotes", (_said("system", "{{ 7 * 7 }} {% raw %}"), _user("{'a': \"b\\n\"} <b>&amp;</b> 'c'"))
    ),
    Conversation(
        "long",
        (_user("One word after the other. " * 800 + "Right?"), _assistant("Yes, " * 200 + "yes."), _user("Go on.")),
    ),
    Conversation(
        "other scripts",
        (
            _said("system", "\u041e\u0442\u0432\u0435\u0447\u0430\u0439 \u043a\u0440\u0430\u0442\u043a\u043e."),
            _user(
                "\u6211\u60f3\u5728apple\u5de5\u4f5c\uff01\u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8 \ud55c\uad6d\uc5b4"
            ),
            _assistant("\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \U0001f600\U0001f1eb\U0001f1f7"),
            _user("Na\u00efve \u00dcbergr\u00f6\u00dfe \u2014 \u20ac5?"),
        ),
    ),
    Conversation("system prompt alone", (_SYSTEM,), odd=True),
    Conversation("system prompt later", (*_EXCHANGES[:2], _SYSTEM, _user("Hi")), odd=True),
    Conversation("two user turns in a row", (_user("Hi"), _user("Are you there?")), odd=True),
    Conversation(
        "two answers in a row", (_user("Hi"), _assistant("Hello."), _assistant("Well?"), _user("Bye")), odd=True
    ),
    Conversation("assistant first", (_assistant("Hello."), _user("Hi")), odd=True),
    Conversation("assistant last", _EXCHANGES[:2], odd=True),
    Conversation("empty answer", (_user("Hi"), _assistant(""), _user("Well?")), odd=True),
    Conversation("result without a call", (_user("Hi"), _result("abcdefghi", "weather", "20")), _TOOLS, odd=True),
    Conversation("unknown role", (_said("poet", "Roses are red"), _user("Hi")), odd=True),
    Conversation("no messages", (), odd=True),
)
