"""The special tokens of a Hugging Face checkpoint: which id has which role, and which are added to a text.

The rules are those of llama.cpp's gguf-py (gguf/vocab.py, `SpecialVocab`), with its order of sources: what the
post-processor of tokenizer.json does, then the names in tokenizer_config.json, then the ids in config.json. There is
one difference: a token that tokenizer_config.json gives as an object (`{"content": "<s>", ...}`) is compared by its
content, so that `add_bos_token` is not lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mconv.convert.documents import member, read_object_if_any
from mconv.convert.errors import FormatError

_ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")


def token_text(entry: object) -> str | None:
    """The text of a token in tokenizer_config.json, which may be a string or an object."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) and content else None


def read_special(folder: Path, tokenizer: dict[str, Any]) -> tuple[dict[str, int], dict[str, bool]]:
    """The ids with a role, and whether to add bos, eos and sep.

    Args:
        folder: the checkpoint.
        tokenizer: the content of its tokenizer.json; empty if there is none.

    Raises:
        FormatError: a file is damaged, or an id is negative.
    """
    config = read_object_if_any(folder / "tokenizer_config.json")
    names = {role: token_text(config.get(f"{role}_token")) for role in _ROLES}
    add_special = _post_processing(tokenizer, names)

    added: dict[str, Any] = {}
    for token in member("tokenizer.json", tokenizer, "added_tokens", list):
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            added.setdefault(token["content"], token.get("id"))
    ids: dict[str, int] = {}
    if config:
        for role, name in names.items():
            if isinstance(adds := config.get(f"add_{role}_token"), bool) and role in ("bos", "eos", "sep"):
                add_special.setdefault(role, adds)
            _set_id(ids, role, added.get(name or ""))

    model = read_object_if_any(folder / "config.json")
    text_model = member("config.json", model, "text_config", dict)
    for role in names:
        token_id = model.get(f"{role}_token_id")
        _set_id(ids, role, text_model.get(f"{role}_token_id") if token_id is None else token_id)
    return ids, add_special


def _set_id(ids: dict[str, int], role: str, token_id: object) -> None:
    """Record an id unless the role has one. A list of ids, as Llama 3 has for eos, is ignored."""
    if isinstance(token_id, bool) or not isinstance(token_id, int):
        return
    if token_id < 0:
        raise FormatError(
            f"config.json: {role}_token_id is {token_id}", "remove the member if the model has no such token"
        )
    ids.setdefault(role, token_id)


def _post_processing(tokenizer: dict[str, Any], names: dict[str, str | None]) -> dict[str, bool]:
    """What the post-processor adds. A token without a role that it puts first or last gets one in `names`."""
    adds: dict[str, bool] = {}
    post_processor = member("tokenizer.json", tokenizer, "post_processor", dict)
    for processor in member("tokenizer.json", post_processor, "processors", list) or [post_processor]:
        if not isinstance(processor, dict):
            raise FormatError(
                "tokenizer.json: a post-processor is not an object", "the file is damaged; download it again"
            )
        if processor.get("type") == "ByteLevel":
            adds.setdefault("bos", False)
            adds.setdefault("eos", False)
        elif processor.get("type") == "TemplateProcessing":
            _template(processor, names, adds)
    return adds


def _template(processor: dict[str, Any], names: dict[str, str | None], adds: dict[str, bool]) -> None:
    """Read a template such as `<s> A` for one text and `<s> A </s> B` for two."""
    single = [_special_of(step) for step in member("tokenizer.json", processor, "single", list)]
    pair = [_special_of(step) for step in member("tokenizer.json", processor, "pair", list)]
    first, last = (single[0], single[-1]) if len(single) > 1 else (None, None)
    if first:
        names["bos"] = names["bos"] or first
        adds["bos"] = first == names["bos"]
    if last:
        if names["eos"] not in (None, last):
            # The template ends a text with a token other than the one named eos; the latter then ends a turn.
            names["eot"] = names["eos"]
        names["eos"] = last
        adds["eos"] = True
    start = 1 if first and pair and pair[0] == first else 0
    stop = -1 if last and pair and pair[-1] == last else None
    between = pair[start:stop][1:-1]
    if between:
        ends = (names["sep"], names["eos"])
        adds["sep"] = (between[0] is not None and between[0] in ends and not last) or (
            len(between) == 2 and between[1] is not None and between[1] in ends
        )


def _special_of(step: object) -> str | None:
    """The special token in a step of a template; None if the step is the text itself."""
    special = step.get("SpecialToken") if isinstance(step, dict) else None
    name = special.get("id") if isinstance(special, dict) else None
    return name if isinstance(name, str) else None
