"""The text model of Mistral Small 3.1 and 3.2, Magistral 2509 and Ministral 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mconv.convert.errors import MappingError, SourceError
from mconv.convert.families.config import Config, Defaults, read_optional, read_spec, rope_object, write_spec
from mconv.convert.families.llama import DENSE, MISTRAL_DEFAULTS, ROTARY_TABLE, write_mistral_config
from mconv.convert.families.table import Drop, Family
from mconv.convert.model.fields import (
    ATTENTION_TEMPERATURE_SCALE,
    CONTEXT,
    HEAD_DIM,
    KV_HEADS,
    RMS_NORM_EPS,
    ROPE_MSCALE_ALL_DIM,
    ROPE_OBJECTS,
    ROPE_THETA,
    TIED,
)
from mconv.convert.model.spec import ModelSpec

# configuration_ministral3.py of transformers.
_MINISTRAL3_DEFAULTS: Defaults = {
    KV_HEADS: 8,
    CONTEXT: 262144,
    RMS_NORM_EPS: 1e-5,
    ROPE_THETA: 1000000.0,
    HEAD_DIM: 128,
}

_VISION = "the vision tower belongs in a separate file (mmproj), which is not written yet"


def _read_config(config: Config) -> ModelSpec:
    text = config.get("text_config", config)
    if not isinstance(text, Mapping):
        raise MappingError("config.json: text_config is not an object", "check config.json against the original")
    kind = text.get("model_type", "mistral")
    if kind not in ("mistral", "ministral3"):
        raise MappingError(
            f"config.json: text model {kind!r} is not supported", "supported inside Mistral3: mistral, ministral3"
        )
    # Both levels can say whether the output matrix is the embedding; in transformers the outer one takes precedence.
    tied = TIED.member
    text = {**text, tied: config.get(tied, text.get(tied, False))}
    defaults = MISTRAL_DEFAULTS if kind == "mistral" else _MINISTRAL3_DEFAULTS
    spec = read_spec(text, defaults, family="mistral3")
    if kind == "mistral":
        return spec
    if spec.rope.type != "yarn":
        raise MappingError(
            f"config.json: rope type {spec.rope.type!r} in a ministral3 model",
            "ministral3 models use yarn; check the rope parameters in config.json",
        )
    scale = read_optional(rope_object(text), ATTENTION_TEMPERATURE_SCALE)
    if scale is None or spec.rope.mscale_all_dim is None:
        beta, multiplier = (field.member for field in (ATTENTION_TEMPERATURE_SCALE, ROPE_MSCALE_ALL_DIM))
        raise SourceError(
            f"config.json: {beta} or {multiplier} is missing from the rope parameters of a ministral3 model",
            "check config.json against the original",
        )
    return replace(spec, attention_temperature_scale=scale)


def _write_config(spec: ModelSpec, _origin: str) -> dict[str, Any]:
    """The configuration of the text model: Mistral without temperature scaling, Ministral 3 with it."""
    if spec.attention_temperature_scale is None:
        return write_mistral_config(spec)
    config = write_spec(spec, "Ministral3ForCausalLM", "ministral3")
    # GGUF stores one multiplier: the published models have the same value in both places, which leaves attention as is.
    config[ROPE_OBJECTS[0]] |= {
        ATTENTION_TEMPERATURE_SCALE.member: spec.attention_temperature_scale,
        "mscale": spec.rope.mscale_all_dim,
    }
    return config


FAMILY = Family(
    name="mistral3",
    classes=("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"),
    read_config=_read_config,
    tensors=DENSE,
    write_config=_write_config,
    drops=(
        ROTARY_TABLE,
        Drop("vision_tower.*", _VISION),
        Drop("model.vision_tower.*", _VISION),
        Drop("multi_modal_projector.*", _VISION),
        Drop("model.multi_modal_projector.*", _VISION),
    ),
)
