"""The table of hyperparameters, through every layout's spelling and back."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import fields as attributes_of
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mconv.convert.containers.gguf import GgufFile
from mconv.convert.errors import MappingError, MconvError
from mconv.convert.families import families, family_named
from mconv.convert.layouts.gguf.architecture import architecture_of, full_key
from mconv.convert.layouts.gguf.hyperparameters import hyperparameters
from mconv.convert.layouts.gguf.names import name_of
from mconv.convert.layouts.gguf.spec import spec_of as spec_of_gguf
from mconv.convert.layouts.megatron.arguments import arguments_of, check_configuration, settings_of
from mconv.convert.layouts.megatron.arguments import spec_of as spec_of_run
from mconv.convert.model import fields
from mconv.convert.model.fields import FIELDS, ROPE_FIELDS, Field, Kind
from mconv.convert.model.metadata import Metadata, float32, string, uint32
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec, Rope
from mconv.convert.tensors.files import SourceFile
from mconv.convert.tensors.nodes import FileTensor

# All values differ, so that no key can stand for another unnoticed.
MISTRAL = ModelSpec(
    "llama", layers=3, hidden=40, ffn=72, heads=8, kv_heads=4, head_dim=6, vocab=97, context=1031, rms_norm_eps=3e-6,
    rope=Rope(12345.0), sliding_window=511,
)  # fmt: skip
YARN = Rope(
    250000.0, "yarn", 16.0, original_context=257, beta_fast=31.0, beta_slow=2.0, attention_factor=0.75,
    extrapolation_factor=0.5, mscale_all_dim=1.25,
)  # fmt: skip
SPECS = {
    "mistral": MISTRAL,
    "tied": replace(MISTRAL, tied=True, sliding_window=None),
    "biased": replace(MISTRAL, attention_bias=True, mlp_bias=True, sliding_window=None),
    "mixtral": replace(MISTRAL, family="mixtral", experts=5, experts_per_token=2),
    "linear": replace(MISTRAL, family="mistral3", rope=Rope(12345.0, "linear", 4.0)),
    "yarn": replace(MISTRAL, rope=replace(YARN, mscale_all_dim=None)),
    "ministral3": replace(
        MISTRAL, family="mistral3", rope=YARN, attention_temperature_scale=0.125, sliding_window=None
    ),
    "llama3": replace(
        MISTRAL, rope=Rope(12345.0, "llama3", 8.0, original_context=257, low_freq_factor=1.5, high_freq_factor=3.5)
    ),
}
BY_NAME = {field.name: field for field in FIELDS}


def with_value(spec: ModelSpec, field: Field, value: Any) -> ModelSpec:
    """The spec with another value."""
    if field in ROPE_FIELDS:
        return replace(spec, rope=replace(spec.rope, **{field.name.removeprefix("rope."): value}))
    return replace(spec, **{field.name: value})


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """config.json of a spec."""
    write = family_named(spec.family).write_config
    assert write is not None
    return write(spec, "" if spec.attention_bias else "MistralForCausalLM")


def read_config(config: dict[str, Any], family: str) -> ModelSpec:
    """The spec of config.json."""
    return family_named(family).read_config(config)


def gguf_of(spec: ModelSpec) -> GgufFile:
    """The header of a GGUF file, whose tensors say what no key does."""
    architecture = architecture_of(spec.family)
    metadata: Metadata = {"general.architecture": string(architecture)}
    metadata |= {full_key(key, architecture): value for key, value in hyperparameters(spec).items()}
    roles = [Role.TOKEN_EMBEDDING, *([] if spec.tied else [Role.OUTPUT])]
    roles += [Role.ATTENTION_Q_BIAS] * spec.attention_bias + [Role.FFN_GATE_BIAS] * spec.mlp_bias
    nowhere = SourceFile(Path("model.gguf"), 0, 0)
    tensors = (FileTensor(name_of(role, 0), "F32", spec.shape_of(role), nowhere, 0, 0, (0, 0)) for role in roles)
    return GgufFile(metadata, tuple(tensors), 32)


def read_gguf(file: GgufFile) -> ModelSpec:
    """The spec of a header."""
    return spec_of_gguf("model.gguf", file)


def read_run(arguments: dict[str, Any], family: str) -> ModelSpec:
    """The spec of the settings of a run."""
    settings = settings_of(arguments)
    assert settings.unknown == ()
    return spec_of_run(settings.known, family)


def test_every_attribute_has_one_field() -> None:
    attributes = [attribute.name for attribute in attributes_of(ModelSpec)]
    in_rope = [f"rope.{attribute.name}" for attribute in attributes_of(Rope)]
    expected = {*attributes, *in_rope} - {"family", "rope"}
    assert Counter(field.name for field in FIELDS) == Counter(dict.fromkeys(expected, 1))
    constants = {value for value in vars(fields).values() if isinstance(value, Field)}
    assert constants == set(FIELDS)


def test_names_are_unique_within_a_layout() -> None:
    in_rope = [field for field in FIELDS if field in ROPE_FIELDS or field is fields.ATTENTION_TEMPERATURE_SCALE]
    beside = [field for field in FIELDS if field not in in_rope]
    for names in (
        [name for field in in_rope for name in field.config],
        [name for field in beside for name in field.config],
        [name for field in FIELDS for name in field.gguf],
        [name for field in FIELDS for name in field.megatron],
    ):
        assert len(names) == len(set(names))


@pytest.mark.parametrize("name", SPECS)
def test_config_json_says_a_whole_spec(name: str) -> None:
    assert read_config(config_of(SPECS[name]), SPECS[name].family) == SPECS[name]


@pytest.mark.parametrize("name", [name for name in SPECS if name != "llama3"])
def test_gguf_says_a_whole_spec(name: str) -> None:
    """Llama 3's scaling is a table among the tensors."""
    assert read_gguf(gguf_of(SPECS[name])) == SPECS[name]


@pytest.mark.parametrize("name", ["mistral", "tied", "mixtral"])
def test_a_run_says_a_whole_spec(name: str) -> None:
    """Biases and scaled positions are not told by its settings."""
    assert read_run(arguments_of(SPECS[name], "BF16"), SPECS[name].family) == SPECS[name]
    assert settings_of(arguments_of(SPECS["yarn"], "BF16")).unknown == ("how the rotary frequencies were scaled",)


NUMBERS = [field for field in FIELDS if field.kind not in (Kind.FLAG, Kind.TEXT)]


def base(field: Field) -> str:
    """The spec that has a value for a field."""
    if field in (fields.ROPE_LOW_FREQ_FACTOR, fields.ROPE_HIGH_FREQ_FACTOR):
        return "llama3"
    if field in (fields.EXPERTS, fields.EXPERTS_PER_TOKEN):
        return "mixtral"
    return "ministral3" if field is fields.ATTENTION_TEMPERATURE_SCALE or field.scalings else "mistral"


def another(field: Field, spec: ModelSpec) -> Any:
    """A value that goes with the rest of the spec."""
    value = field.value(spec)
    return value * 2 if field.kind is Kind.COUNT else value + 0.25


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_every_spelling_in_config_json_is_read(field: Field) -> None:
    spec = SPECS[base(field)]
    if field.value(spec) is None:
        spec = with_value(spec, field, 0.5)
    changed = with_value(spec, field, another(field, spec))
    for spelling in field.config:
        config = config_of(spec)
        holder = config["rope_parameters"] if field.config[0] in config["rope_parameters"] else config
        assert holder.pop(field.config[0]) == field.value(spec)
        holder[spelling] = field.value(changed)
        assert read_config(config, spec.family) == changed


@pytest.mark.parametrize("field", [field for field in NUMBERS if field.gguf], ids=lambda field: field.name)
def test_every_key_in_gguf_is_read(field: Field) -> None:
    spec = SPECS[base(field)]
    changed = with_value(spec, field, another(field, spec))
    file = gguf_of(spec)
    value = field.value(changed)
    stored = uint32(value) if field.kind is Kind.COUNT else float32(value)
    keys = {full_key(key, architecture_of(spec.family)): stored for key in field.gguf}
    assert keys.keys() <= file.metadata.keys()
    tensors = gguf_of(changed).tensors  # the embedding says how many tokens there are
    assert read_gguf(GgufFile({**file.metadata, **keys}, tensors, 32)) == changed


RUN_NUMBERS = [
    field for field in NUMBERS if field.megatron and field not in (fields.SLIDING_WINDOW, fields.ROPE_FACTOR)
]


@pytest.mark.parametrize("field", RUN_NUMBERS, ids=lambda field: field.name)
def test_every_name_in_a_run_is_read(field: Field) -> None:
    spec = SPECS[base(field)]
    changed = with_value(spec, field, another(field, spec))
    for name in field.megatron:
        arguments = arguments_of(spec, "BF16")
        for other in field.megatron:
            arguments.pop(other, None)
        arguments[name] = field.value(changed)
        arguments["group_query_attention"] = True
        assert read_run(arguments, spec.family) == changed


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_what_is_no_value_is_refused(field: Field) -> None:
    good = {Kind.COUNT: 1, Kind.POSITIVE: 0.5, Kind.NUMBER: 0, Kind.FLAG: False, Kind.TEXT: "yarn"}[field.kind]
    assert field.accepts(good)
    bad: object
    for bad in (None, [1], {}, float("nan"), float("inf"), -1, 10**400):
        assert not field.accepts(bad)
    if field.kind in (Kind.COUNT, Kind.POSITIVE):
        assert not field.accepts(0) and not field.accepts(True) and not field.accepts("1")
    if field.kind is Kind.COUNT:
        assert not field.accepts(1.0) and not field.accepts(field.most + 1) and field.accepts(field.most)


def test_silence_means_the_same_in_every_layout() -> None:
    """As many key-value heads as heads, which share the width; no experts, no window."""
    spec = replace(MISTRAL, kv_heads=8, head_dim=5 * 2, hidden=80, sliding_window=None)
    config = config_of(spec)
    for field in (fields.KV_HEADS, fields.HEAD_DIM, fields.SLIDING_WINDOW):
        del config[field.member]
    config["model_type"] = "llama"
    assert read_config(config, "llama") == spec
    file = gguf_of(spec)
    silent = [full_key(key, "llama") for field in (fields.KV_HEADS, fields.HEAD_DIM) for key in field.gguf]
    metadata = {key: value for key, value in file.metadata.items() if key not in silent}
    assert read_gguf(GgufFile(metadata, file.tensors, 32)) == replace(spec, states_head_dim=False)
    arguments = arguments_of(spec, "BF16")
    for field in (fields.KV_HEADS, fields.HEAD_DIM, fields.EXPERTS):
        del arguments[field.megatron[0]]
    assert read_run(arguments, "llama") == spec


def test_errors_speak_the_words_of_the_file() -> None:
    """Eight heads cannot be divided among three."""
    config = {**config_of(MISTRAL), "num_key_value_heads": 3}
    file = gguf_of(MISTRAL)
    damaged = GgufFile({**file.metadata, "llama.attention.head_count_kv": uint32(3)}, file.tensors, 32)
    arguments = {**arguments_of(MISTRAL, "BF16"), "num_query_groups": 3}
    hints = {
        "num_attention_heads must be a multiple of num_key_value_heads in config.json": lambda: read_config(
            config, "llama"
        ),
        "llama.attention.head_count must be a multiple of llama.attention.head_count_kv in model.gguf": lambda: (
            read_gguf(damaged)
        ),
        "num_attention_heads must be a multiple of num_query_groups in the settings of the run": lambda: read_run(
            arguments, "llama"
        ),
        "heads must be a multiple of kv_heads": lambda: replace(MISTRAL, kv_heads=3),
    }
    for hint, make in hints.items():
        with pytest.raises(MappingError, match="8 attention heads cannot be divided among 3 key-value heads") as caught:
            make()
        assert caught.value.hint == hint
        again = pickle.loads(pickle.dumps(caught.value))
        assert (type(again), str(again), again.hint) == (type(caught.value), str(caught.value), hint)
    with pytest.raises(MconvError, match=r"the settings of the run: num_layers is 2\.5"):
        read_run({**arguments, "num_layers": 2.5}, "llama")
    with pytest.raises(MconvError, match=r"config\.json: num_hidden_layers is 2\.5"):
        read_config({**config, "num_hidden_layers": 2.5}, "llama")
    with pytest.raises(MconvError, match=r"model\.gguf: llama\.block_count is '2\.5'"):
        read_gguf(GgufFile({**file.metadata, "llama.block_count": float32(2.5)}, file.tensors, 32))
    assert settings_of({**arguments, "num_layers": None}).unknown == ("num_layers (num_hidden_layers)",)


def test_a_run_of_another_model_is_told_from_its_configuration() -> None:
    known = settings_of(arguments_of(MISTRAL, "BF16")).known
    check_configuration(known, MISTRAL)
    # The context and the window of a run may be shorter than the model's.
    check_configuration(known, replace(MISTRAL, context=2048, vocab=96, sliding_window=None))
    for changed in (replace(MISTRAL, layers=4), replace(MISTRAL, rope=Rope(1e6)), replace(MISTRAL, tied=True)):
        with pytest.raises(MappingError, match="but the run used"):
            check_configuration(known, changed)


@pytest.mark.parametrize("role", Role, ids=lambda role: role.value)
def test_a_shape_follows_from_its_fields_alone(role: Role) -> None:
    """Every other number may change, and the shape stays."""
    spec = replace(SPECS["mixtral"], experts=4)
    for field in (
        fields.HIDDEN,
        fields.FFN,
        fields.VOCAB,
        fields.HEADS,
        fields.KV_HEADS,
        fields.HEAD_DIM,
        fields.EXPERTS,
    ):
        value = 8 if field is fields.KV_HEADS else 2 * field.value(spec)
        changed = with_value(spec, field, value).shape_of(role) != spec.shape_of(role)
        assert changed == (field in fields.fields_of(role))


def test_a_family_reads_what_it_writes() -> None:
    written = {spec.family for spec in SPECS.values()}
    assert written == {family.name for family in families()}
