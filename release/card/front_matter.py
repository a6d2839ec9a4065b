"""The metadata of a card: the YAML at the start of README.md that the Hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mconv.release.card.markdown import visible
from mconv.release.inputs import ReleaseInputs
from mconv.release.recipe import LANGUAGE, Recipe

# Libraries that can load the source but not the published files.
_OTHER_LIBRARIES = frozenset({"transformers", "safetensors", "pytorch", "vllm", "mistral-common"})
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_MOST_TAGS = 30


def card_metadata(recipe: Recipe, inputs: ReleaseInputs) -> dict[str, Any]:
    """The members, in order. Members missing from the recipe are taken from the source's card if they are valid."""
    base = base_model(recipe, inputs)
    licence, name, link = licence_of(recipe, inputs)
    return {
        key: value
        for key, value in {
            "license": licence,
            "license_name": name,
            "license_link": link,
            "base_model": base,
            "base_model_relation": "quantized" if base else None,
            "quantized_by": _one_line(recipe.quantized_by),
            "library_name": "gguf",
            "pipeline_tag": "text-generation",
            "language": _languages(recipe, inputs),
            "tags": _tags(recipe, inputs),
        }.items()
        if value
    }


def base_model(recipe: Recipe, inputs: ReleaseInputs) -> str | None:
    """The model on the Hub that was quantized, if any."""
    return recipe.base_model or inputs.repository


def gaps(recipe: Recipe, inputs: ReleaseInputs) -> Iterator[str]:
    """What is missing from the card, and where to add it."""
    if base_model(recipe, inputs) is None:
        yield "the card has no base model, so the Hub lists the release under none: add base_model to the recipe"
    if licence_of(recipe, inputs)[0] is None:
        yield "the card has no licence: add licence to the recipe"


def licence_of(recipe: Recipe, inputs: ReleaseInputs) -> tuple[str | None, str | None, str | None]:
    """The Hub's name of the licence, its own name if that is "other", and the address of its text."""
    licence, name, link = recipe.licence, recipe.licence_name, recipe.licence_link
    if licence is None:
        keys = ("license", "license.name", "license.link")
        licence, name, link = (inputs.text(f"general.{key}") for key in keys)
    # Only a licence without a name on the Hub has its own name.
    if licence is None or not _LICENCE.fullmatch(licence):
        return None, None, None
    return licence, *((_one_line(name), _one_line(link)) if licence == "other" else (None, None))


def _languages(recipe: Recipe, inputs: ReleaseInputs) -> list[str]:
    said = _texts(inputs.metadata("general.languages")) if recipe.languages is None else recipe.languages
    return [code for code in dict.fromkeys(said) if re.fullmatch(LANGUAGE, code)]


def _tags(recipe: Recipe, inputs: ReleaseInputs) -> list[str]:
    said = _texts(inputs.metadata("general.tags")) if recipe.tags is None else recipe.tags
    kept = [visible(tag) for tag in said if tag.lower() not in _OTHER_LIBRARIES and len(tag) <= 80]
    own = ["gguf", "quantized", *(["imatrix"] if recipe.imatrix else [])]
    return list(dict.fromkeys([*own, *kept[:_MOST_TAGS]]))


def _one_line(text: str | None) -> str | None:
    return " ".join(visible(text).split()) if text else None


def _texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
