"""Llama, and dense models of the same structure: Mistral 7B, Nemo, Small 3, Magistral."""

from __future__ import annotations

from typing import Any

from mconv.convert.families.config import Config, Defaults, read_spec, write_spec
from mconv.convert.families.table import Drop, Family, Named
from mconv.convert.model.fields import (
    ATTENTION_BIAS,
    CONTEXT,
    KV_HEADS,
    MLP_BIAS,
    RMS_NORM_EPS,
    ROPE_THETA,
    SLIDING_WINDOW,
    STATES_HEAD_DIM,
)
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec


def _untied(spec: ModelSpec) -> bool:
    return not spec.tied


def _attention_bias(spec: ModelSpec) -> bool:
    return spec.attention_bias


def _mlp_bias(spec: ModelSpec) -> bool:
    return spec.mlp_bias


OUTER = (
    Named(Role.TOKEN_EMBEDDING, "model.embed_tokens.weight"),
    Named(Role.OUTPUT_NORM, "model.norm.weight"),
    Named(Role.OUTPUT, "lm_head.weight", _untied),
)

LAYER = "model.layers.{layer}."
_ATTENTION, _MLP = LAYER + "self_attn.", LAYER + "mlp."

ATTENTION = (
    Named(Role.ATTENTION_NORM, LAYER + "input_layernorm.weight"),
    Named(Role.ATTENTION_Q, _ATTENTION + "q_proj.weight"),
    Named(Role.ATTENTION_K, _ATTENTION + "k_proj.weight"),
    Named(Role.ATTENTION_V, _ATTENTION + "v_proj.weight"),
    Named(Role.ATTENTION_OUTPUT, _ATTENTION + "o_proj.weight"),
    Named(Role.FFN_NORM, LAYER + "post_attention_layernorm.weight"),
)

ATTENTION_BIASES = (
    Named(Role.ATTENTION_Q_BIAS, _ATTENTION + "q_proj.bias", _attention_bias),
    Named(Role.ATTENTION_K_BIAS, _ATTENTION + "k_proj.bias", _attention_bias),
    Named(Role.ATTENTION_V_BIAS, _ATTENTION + "v_proj.bias", _attention_bias),
    Named(Role.ATTENTION_OUTPUT_BIAS, _ATTENTION + "o_proj.bias", _attention_bias),
)

MLP = (
    Named(Role.FFN_GATE, _MLP + "gate_proj.weight"),
    Named(Role.FFN_UP, _MLP + "up_proj.weight"),
    Named(Role.FFN_DOWN, _MLP + "down_proj.weight"),
)

MLP_BIASES = (
    Named(Role.FFN_GATE_BIAS, _MLP + "gate_proj.bias", _mlp_bias),
    Named(Role.FFN_UP_BIAS, _MLP + "up_proj.bias", _mlp_bias),
    Named(Role.FFN_DOWN_BIAS, _MLP + "down_proj.bias", _mlp_bias),
)

DENSE = OUTER + ATTENTION + MLP

ROTARY_TABLE = Drop("*.rotary_emb.inv_freq", f"rotary frequencies follow from {ROPE_THETA.member}")

# The defaults of transformers (configuration_llama.py, configuration_mistral.py). Both classes fill in the length of a
# head, so other converters write it even if config.json omits it.
LLAMA_DEFAULTS: Defaults = {CONTEXT: 2048, RMS_NORM_EPS: 1e-6, ROPE_THETA: 10000.0, STATES_HEAD_DIM: True}
MISTRAL_DEFAULTS: Defaults = {**LLAMA_DEFAULTS, KV_HEADS: 8, CONTEXT: 131072}


def _read_config(config: Config) -> ModelSpec:
    defaults = MISTRAL_DEFAULTS if config.get("model_type") == "mistral" else LLAMA_DEFAULTS
    return read_spec(config, defaults, family="llama")


def write_mistral_config(spec: ModelSpec) -> dict[str, Any]:
    """The configuration of a dense Mistral; always names the window, since transformers assumes one otherwise."""
    return write_spec(spec, "MistralForCausalLM", "mistral", SLIDING_WINDOW)


def _write_config(spec: ModelSpec, origin: str) -> dict[str, Any]:
    if origin == "MistralForCausalLM" and not (spec.attention_bias or spec.mlp_bias):
        return write_mistral_config(spec)
    return write_spec(spec, "LlamaForCausalLM", "llama", ATTENTION_BIAS, MLP_BIAS)


FAMILY = Family(
    name="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"),
    read_config=_read_config,
    tensors=DENSE + ATTENTION_BIASES + MLP_BIASES,
    drops=(ROTARY_TABLE,),
    write_config=_write_config,
)
