"""Read config.json into a ModelSpec and write it back: the part that all families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mconv.convert.errors import MappingError, SourceError
from mconv.convert.model.fields import (
    ATTENTION_BIAS,
    CONTEXT,
    EXPERTS,
    EXPERTS_PER_TOKEN,
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    MLP_BIAS,
    RMS_NORM_EPS,
    ROPE_FIELDS,
    ROPE_HIGH_FREQ_FACTOR,
    ROPE_LOW_FREQ_FACTOR,
    ROPE_OBJECTS,
    ROPE_ORIGINAL_CONTEXT,
    ROPE_THETA,
    ROPE_TYPE,
    SLIDING_WINDOW,
    STATES_HEAD_DIM,
    TIED,
    VOCAB,
    Field,
    Kind,
    Words,
    make_spec,
)
from mconv.convert.model.spec import ModelSpec, Rope

Config = Mapping[str, Any]

Defaults = Mapping[Field, Any]
"""The defaults of a transformers configuration class, for members that config.json omits."""

_ROPE_TYPES = ("default", "linear", "yarn", "llama3")
_ACTIVATION, _SILU = "hidden_act", "silu"
_WORDS = Words("config.json", lambda field: field.member)
# Every model has these; some configuration classes have more.
_ALWAYS = (HIDDEN, FFN, CONTEXT, HEADS, LAYERS, KV_HEADS, RMS_NORM_EPS, TIED, VOCAB)


def read_spec(config: Config, defaults: Defaults, *, family: str) -> ModelSpec:
    """Build a spec from the text configuration of a checkpoint.

    Args:
        config: the text part of config.json, with `rope_parameters` (transformers 5) or `rope_theta` and
            `rope_scaling`.
        defaults: the defaults of the transformers configuration class, for members that the file omits.

    Raises:
        SourceError: a member is missing or of the wrong type.
        MappingError: the model does something that no layout here can express.
    """
    activation = config.get(_ACTIVATION)
    if activation not in (None, _SILU):
        raise MappingError(
            f"config.json: {_ACTIVATION} is {activation!r}, but llama.cpp computes this architecture with {_SILU}",
            "none of the supported layouts can hold this model",
        )
    known: dict[str, Any] = {}

    def read(*fields: Field) -> None:
        for field in fields:
            known[field.name] = read_member(config, field, defaults, known)

    read(HIDDEN, HEADS)
    states_head_dim = read_optional(config, HEAD_DIM) is not None or HEAD_DIM in defaults
    if not states_head_dim and known["hidden"] % known["heads"]:
        width, heads, length = (field.member for field in (HIDDEN, HEADS, HEAD_DIM))
        raise SourceError(
            f"config.json: {width} {known['hidden']} is not a multiple of {heads} {known['heads']}, "
            f"and {length} is missing",
            f"add {length} to config.json",
        )
    read(EXPERTS, LAYERS, FFN, KV_HEADS, HEAD_DIM, VOCAB, CONTEXT, RMS_NORM_EPS, TIED, SLIDING_WINDOW)
    read(ATTENTION_BIAS, MLP_BIAS)
    known[STATES_HEAD_DIM.name] = states_head_dim or bool(defaults.get(STATES_HEAD_DIM))
    if known["experts"]:
        read(EXPERTS_PER_TOKEN)
    return make_spec(_WORDS, family=family, rope=read_rope(config, defaults), **known)


def rope_object(config: Config) -> Config:
    """The rotary parameters in either spelling: the object of transformers 5, or the older one with theta beside it.

    Raises:
        SourceError: it is not an object.
    """
    key, parameters = next(((key, config[key]) for key in ROPE_OBJECTS if config.get(key)), ("", {}))
    if not isinstance(parameters, Mapping):
        raise SourceError(f"config.json: {key} is not an object", "check config.json against the original")
    beside = {field.member: config.get(field.member) for field in (ROPE_THETA, ROPE_ORIGINAL_CONTEXT)}
    return beside | {key: value for key, value in parameters.items() if value is not None}


def read_rope(config: Config, defaults: Defaults) -> Rope:
    """Rotary embedding parameters.

    Raises:
        SourceError: a member is missing or of the wrong type.
        MappingError: no layout here supports this kind of scaling.
    """
    members = rope_object(config)
    kind = str(next((members[key] for key in ROPE_TYPE.config if members.get(key)), _ROPE_TYPES[0])).lower()
    if kind not in _ROPE_TYPES:
        raise MappingError(f"config.json: rope type {kind!r} is not supported", f"supported: {', '.join(_ROPE_TYPES)}")
    values: dict[str, Any] = {}
    for field in ROPE_FIELDS:
        if field is ROPE_TYPE:
            continue
        name, key = field.name.removeprefix("rope."), field.member
        if field.default is not None or not field.scalings:
            values[name] = read_member(members, field, defaults, {})
            continue
        values[name] = read_optional(members, field)
        if values[name] is None and kind in field.scalings:
            raise SourceError(f"config.json: rope type {kind!r} without {key}", f"add {key} to the rope parameters")
    rope = Rope(type=kind, **values)
    if kind == "llama3" and rope.low_freq_factor >= rope.high_freq_factor:
        low, high = ROPE_LOW_FREQ_FACTOR.member, ROPE_HIGH_FREQ_FACTOR.member
        raise SourceError(f"config.json: {low} is not below {high}", "check the rope parameters against the original")
    return rope


def write_spec(spec: ModelSpec, architecture: str, model_type: str, *fields: Field) -> dict[str, Any]:
    """The members of config.json that `read_spec` reads, as transformers 5 spells them.

    Args:
        architecture: the transformers class.
        model_type: its name in the registry of configurations.
        fields: fields of this configuration in addition to the common ones.
    """
    head_dim = (HEAD_DIM,) if spec.states_head_dim else ()
    return {
        "architectures": [architecture],
        "model_type": model_type,
        _ACTIVATION: _SILU,
        ROPE_OBJECTS[0]: _write_rope(spec),
        **{field.member: field.value(spec) for field in (*_ALWAYS, *head_dim, *fields)},
    }


def _write_rope(spec: ModelSpec) -> dict[str, Any]:
    """The rotary parameters for transformers: those that the kind of scaling needs, and the others that are known."""
    members = {}
    for field in ROPE_FIELDS:
        value = field.value(spec)
        is_needed = not field.scalings or spec.rope.type in field.scalings
        if (value is not None) if field.is_optional else is_needed:
            members[field.member] = value
    return members


def read_member(config: Config, field: Field, defaults: Defaults, known: Mapping[str, Any]) -> Any:
    """The value of a field; if config.json omits it, the default of the family or of the field.

    Raises:
        SourceError: it is missing, or is not a valid value of the field.
    """
    value = read_optional(config, field)
    value = defaults.get(field) if value is None else value
    if value is not None:
        return value
    if field.default is None:
        key = field.member
        raise SourceError(f"config.json: {key} is missing", f"{key} must be {field.rule}")
    return field.default(known)


def read_optional(config: Config, field: Field) -> Any:
    """The value of a field; None if config.json omits it.

    Raises:
        SourceError: it is not a valid value of the field.
    """
    key = next((key for key in field.config if config.get(key) is not None), None)
    if key is None:
        return None
    value = config[key]
    if not field.accepts(value):
        text = repr(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge number"
        raise SourceError(f"config.json: {key} is {text[:80]}", f"{key} must be {field.rule}")
    return float(value) if field.kind in (Kind.POSITIVE, Kind.NUMBER) else value
