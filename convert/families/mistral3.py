"""The text model of Mistral Small 3.1 and 3.2, Magistral 2509 and Ministral 3: GGUF architecture `mistral3`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mconv.convert.errors import MappingError, SourceError
from mconv.convert.families.config import Config, optional_number, read_spec, write_spec
from mconv.convert.families.llama import DENSE_ROWS, MISTRAL_DEFAULTS, ROTARY_TABLE, write_mistral_config
from mconv.convert.families.table import Drop, Family
from mconv.convert.model.spec import ModelSpec

# configuration_ministral3.py of transformers.
_MINISTRAL3_DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "head_dim": 128,
}

_VISION = "the vision tower belongs in a file of its own (mmproj), which is not written yet"


def _read_config(config: Config) -> ModelSpec:
    text = config.get("text_config", config)
    if not isinstance(text, Mapping):
        raise MappingError("config.json: text_config is not an object", "check config.json against the original")
    kind = text.get("model_type", "mistral")
    if kind not in ("mistral", "ministral3"):
        raise MappingError(
            f"config.json: text model {kind!r} is not supported", "supported inside Mistral3: mistral, ministral3"
        )
    # Either level may say that the output matrix is the embedding; the outer one wins in transformers.
    text = {**text, "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))}
    defaults = MISTRAL_DEFAULTS if kind == "mistral" else _MINISTRAL3_DEFAULTS
    spec = read_spec(text, defaults, family="mistral3", gguf_architecture="mistral3")
    if kind == "mistral":
        return spec
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if spec.rope.type != "yarn":
        raise MappingError(
            f"config.json: rope type {spec.rope.type!r} in a ministral3 model",
            "ministral3 models use yarn; check rope_parameters in config.json",
        )
    scale = optional_number(rope, "llama_4_scaling_beta")
    if scale is None or spec.rope.mscale_all_dim is None:
        raise SourceError(
            "config.json: rope_parameters of a ministral3 model lack llama_4_scaling_beta or mscale_all_dim",
            "check rope_parameters in config.json against the original",
        )
    return replace(spec, attention_temperature_scale=scale)


def _write_config(spec: ModelSpec, _origin: str) -> dict[str, Any]:
    """The text model alone: without temperature scaling it is a Mistral, with it a Ministral 3."""
    if spec.attention_temperature_scale is None:
        return write_mistral_config(spec)
    config = write_spec(spec, "Ministral3ForCausalLM", "ministral3")
    # GGUF keeps one multiplier: the published models have the same in both places, which leaves the attention as it is.
    config["rope_parameters"] |= {
        "llama_4_scaling_beta": spec.attention_temperature_scale,
        "mscale": spec.rope.mscale_all_dim,
    }
    return config


FAMILY = Family(
    name="mistral3",
    classes=("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"),
    read_config=_read_config,
    rows=DENSE_ROWS,
    write_config=_write_config,
    gguf_architecture="mistral3",
    drops=(
        ROTARY_TABLE,
        Drop("vision_tower.*", _VISION),
        Drop("model.vision_tower.*", _VISION),
        Drop("multi_modal_projector.*", _VISION),
        Drop("model.multi_modal_projector.*", _VISION),
    ),
)
