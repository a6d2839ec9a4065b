"""Convert the settings of a training run to hyperparameters, and back.

Megatron-LM stores its command line as `args` in the common state (megatron/training/arguments.py); Megatron Bridge
writes run_config.yaml, whose `model` has the names of TransformerConfig. Both are optional and untrusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.containers.pickles import Record
from mconv.convert.containers.torch_dist import DistributedCheckpoint
from mconv.convert.containers.torch_zip import TorchZip, open_file
from mconv.convert.errors import FormatError, MappingError, SourceError
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
    ROPE_FACTOR,
    ROPE_THETA,
    ROPE_TYPE,
    SLIDING_WINDOW,
    TIED,
    VOCAB,
    Field,
    Words,
    make_spec,
)
from mconv.convert.model.spec import ModelSpec, Rope

COMMON = "common.pt"
RUN_CONFIG = "run_config.yaml"
_COMMON_KEY = "common_state/shard_0_1"

_NUMBERS = (
    LAYERS,
    HIDDEN,
    FFN,
    HEADS,
    KV_HEADS,
    HEAD_DIM,
    RMS_NORM_EPS,
    ROPE_THETA,
    CONTEXT,
    EXPERTS,
    EXPERTS_PER_TOKEN,
    VOCAB,
)
"""Hyperparameters that the settings of a run store directly."""

# The vocabulary size follows from the rows of the embedding, and a dense model has no experts.
_REQUIRED = tuple(field for field in _NUMBERS if field not in (EXPERTS, EXPERTS_PER_TOKEN, VOCAB))

_GROUPED = "group_query_attention"
_POSITIONS, *_SCALED = ROPE_TYPE.megatron
_LLAMA3_FACTOR, _LINEAR_FACTOR = ROPE_FACTOR.megatron
_UNTIED, _SHARED = TIED.megatron
_WINDOW = SLIDING_WINDOW.megatron[0]
_DEFAULT_TOP_K = 2  # the default of TransformerConfig
_WORDS = Words("the settings of the run", lambda field: field.megatron[0] if field.megatron else field.name)

_UNSUPPORTED = {
    "rotary_interleaved": (True,),
    "apply_layernorm_1p": (True,),
    "layernorm_zero_centered_gamma": (True,),
    "swiglu": (False,),
    "gated_linear_unit": (False,),
    "normalization": ("LayerNorm",),
    "moe_router_pre_softmax": (True,),
    "qk_layernorm": (True,),
    "multi_latent_attention": (True,),
}
"""Settings of a run that no supported family computes."""


def read_arguments(folder: Path, checkpoint: DistributedCheckpoint) -> dict[str, Any]:
    """The settings that a run saved: name to value; empty if it saved none.

    Raises:
        FormatError: a file is damaged, or a pickle uses a name that is not allowed.
    """
    common = _read_common(folder, checkpoint)
    arguments = common.get("args") if isinstance(common, dict) else None
    found = dict(_run_config(folder / RUN_CONFIG))
    if isinstance(arguments, Record) and isinstance(arguments.state, dict):
        found |= arguments.state
    elif isinstance(arguments, dict):
        found |= arguments
    return found


def _read_common(folder: Path, checkpoint: DistributedCheckpoint) -> Any:
    """The common state: a separate file up to Megatron-Core 0.18, one of the objects from 0.19 on."""
    if (folder / COMMON).is_file():
        file = open_file(folder / COMMON)
        return TorchZip(file, 0, file.size, COMMON).value
    if _COMMON_KEY not in checkpoint.objects:
        return {}
    value = checkpoint.objects[_COMMON_KEY].value()
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _run_config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads the Python objects that such files contain as None, and creates none of them."""

    Loader.add_multi_constructor("", lambda *_: None)
    try:
        content = yaml.load(path.read_bytes(), Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise FormatError(f"{path.name} is not valid YAML ({error})", "copy the checkpoint again") from error
    model = content.get("model") if isinstance(content, dict) else None
    return model if isinstance(model, dict) else {}


@dataclass(frozen=True)
class Settings:
    """The model settings of a run.

    Attributes:
        known: values by field.
        unknown: required hyperparameters that are missing, by their names in the settings and in config.json.
    """

    known: Mapping[Field, Any]
    unknown: tuple[str, ...]


def settings_of(arguments: Mapping[str, Any]) -> Settings:
    """The hyperparameters among the settings of a run.

    Raises:
        MappingError: no supported family has a setting.
    """
    for name, refused in _UNSUPPORTED.items():
        if arguments.get(name) in refused:
            raise MappingError(f"the run used {name}={arguments[name]}", "no supported model family computes this")
    known: dict[Field, Any] = {}
    for field in _NUMBERS:
        value = next((arguments[name] for name in field.megatron if _is_number(arguments.get(name))), None)
        if value is not None:
            known[field] = value
    # In TransformerConfig, a missing number of groups means the number of heads.
    if (arguments.get(_GROUPED) is False or KV_HEADS not in known) and HEADS in known:
        known[KV_HEADS] = known[HEADS]
    if HEAD_DIM not in known and {HIDDEN, HEADS} <= known.keys():
        known[HEAD_DIM] = known[HIDDEN] // known[HEADS]
    untied, shared = arguments.get(_UNTIED), arguments.get(_SHARED)
    if isinstance(untied, bool) or isinstance(shared, bool):
        known[TIED] = shared if isinstance(shared, bool) else not untied
    # Number of earlier positions that attention covers; -1 for all of them.
    window = arguments.get(_WINDOW)
    if isinstance(window, (list, tuple)) and window and _is_number(window[0]):
        known[SLIDING_WINDOW] = window[0] + 1
    unknown = [_said_twice(field) for field in _REQUIRED if field not in known]
    if arguments.get(_POSITIONS) not in (None, "rope") or any(
        arguments.get(name) for name in (*_SCALED, _LINEAR_FACTOR)
    ):
        # The settings contain this only in part.
        known.pop(ROPE_THETA, None)
        unknown.append("how the rotary frequencies were scaled")
    return Settings(known, tuple(unknown))


def _said_twice(field: Field) -> str:
    """The name of a field in the settings and in config.json, either of which may provide it."""
    name = field.megatron[0]
    return name if name == field.member else f"{name} ({field.member})"


def spec_of(known: Mapping[Field, Any], family: str) -> ModelSpec:
    """The hyperparameters of a run whose settings are complete; see `Settings.unknown`.

    Args:
        known: values by field, including those that follow from the weights.

    Raises:
        SourceError: a value is not valid.
        MappingError: values contradict each other.
    """
    for field, value in known.items():
        if not field.accepts(value):
            name = _WORDS.spell(field)
            raise SourceError(f"{_WORDS.source}: {name} is {str(value)[:80]}", f"{name} must be {field.rule}")
    values = {field.name: known[field] for field in known if not field.name.startswith("rope.")}
    values[RMS_NORM_EPS.name] = float(known[RMS_NORM_EPS])
    if EXPERTS in known:
        values.setdefault(EXPERTS_PER_TOKEN.name, _DEFAULT_TOP_K)
    else:
        values.pop(EXPERTS_PER_TOKEN.name, None)
    return make_spec(_WORDS, family=family, rope=Rope(float(known[ROPE_THETA])), **values)


def check_configuration(known: Mapping[Field, Any], spec: ModelSpec) -> None:
    """Compare the settings of a run with the configuration of the model.

    Args:
        known: values by field, see `Settings`.

    Raises:
        MappingError: they contradict each other.
    """
    for field, value in known.items():
        ours = field.value(spec)
        # A run of a dense model may have a setting for experts; the vocabulary may be padded, and the run may have used
        # a shorter context or window than the model's.
        is_compared = field not in (VOCAB, CONTEXT, SLIDING_WINDOW) and (field is not EXPERTS_PER_TOKEN or spec.experts)
        if is_compared and ours != value:
            raise MappingError(
                f"config.json has {field.member} {ours}, but the run used {value}",
                "give the configuration of this model with --hf-config",
            )


def arguments_of(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """The settings that Megatron-LM's `--use-checkpoint-args` reads (megatron/training/checkpointing.py)."""
    rope = spec.rope
    arguments: dict[str, Any] = {
        **_said(spec, LAYERS, HIDDEN),
        FFN.megatron[-1]: spec.ffn,
        **_said(spec, HEADS),
        _GROUPED: spec.kv_heads != spec.heads,
        **_said(spec, KV_HEADS, HEAD_DIM),
        **dict.fromkeys(CONTEXT.megatron, spec.context),
        _POSITIONS: "yarn" if rope.type == "yarn" else "rope",
        "add_position_embedding": True,
        ROPE_THETA.megatron[0]: int(rope.theta) if rope.theta == int(rope.theta) else rope.theta,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        _SCALED[0]: rope.type == "llama3",
        _LLAMA3_FACTOR: rope.factor if rope.type == "llama3" else 8.0,
        _LINEAR_FACTOR: rope.factor if rope.type == "linear" else None,
        "normalization": "RMSNorm",
        **_said(spec, RMS_NORM_EPS),
        "apply_layernorm_1p": False,
        "swiglu": True,
        MLP_BIAS.megatron[0]: spec.attention_bias or spec.mlp_bias,
        ATTENTION_BIAS.megatron[0]: spec.attention_bias,
        _UNTIED: not spec.tied,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        **_said(spec, VOCAB),
        "padded_vocab_size": spec.vocab,
        "make_vocab_size_divisible_by": 1,
        "tokenizer_type": "HuggingFaceTokenizer",
        EXPERTS.megatron[0]: spec.experts or None,
        "bf16": dtype == "BF16",
        "fp16": dtype == "F16",
        "ckpt_format": "torch_dist",
        "iteration": 0,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
    }
    if spec.experts:
        arguments |= {**_said(spec, EXPERTS_PER_TOKEN), "moe_router_pre_softmax": False}
    if spec.sliding_window is not None:
        arguments[_WINDOW] = (spec.sliding_window - 1, 0)
    return arguments


def _said(spec: ModelSpec, *fields: Field) -> dict[str, Any]:
    return {field.megatron[0]: field.value(spec) for field in fields}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
