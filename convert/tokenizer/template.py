"""The chat template of a checkpoint, as Jinja, from any of the places where it may be stored."""

from __future__ import annotations

import re
from pathlib import Path

from mconv.convert.documents import read_object_if_any, read_text
from mconv.convert.errors import FormatError


def read_chat_templates(folder: Path) -> dict[str, str]:
    """The templates of a checkpoint by name; the one to use by default is called 'default'. Empty if there are none.

    The order is that of transformers: `chat_template.jinja` (with `additional_chat_templates/NAME.jinja`), the
    `chat_template` of tokenizer_config.json, `chat_template.json`.

    Raises:
        FormatError: a template is neither a string nor a list of named strings.
    """
    if (folder / "chat_template.jinja").is_file():
        templates = {"default": read_text(folder / "chat_template.jinja")}
        for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
            templates[plain_name(path.stem)] = read_text(path)
        return templates
    for name in ("tokenizer_config.json", "chat_template.json"):
        content = read_object_if_any(folder / name).get("chat_template")
        if content is not None:
            return _by_name(name, content)
    return {}


def _by_name(source: str, content: object) -> dict[str, str]:
    if isinstance(content, str):
        return {"default": content}
    if isinstance(content, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
        for entry in content
    ):
        return {plain_name(entry["name"]): entry["template"] for entry in content}
    raise FormatError(
        f"{source}: 'chat_template' is neither a string nor a list of named strings",
        "write the template to chat_template.jinja, which is read first",
    )


def plain_name(name: str) -> str:
    """The name as part of a metadata key: `tool-use` becomes `tool_use`."""
    return re.sub(r"[^0-9A-Za-z]", "_", name)
