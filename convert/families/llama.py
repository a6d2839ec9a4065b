"""Llama, and the dense models of its shape: Mistral 7B, Nemo, Small 3, Magistral."""

from __future__ import annotations

from typing import Any

from mconv.convert.families.config import Config, read_spec, write_spec
from mconv.convert.families.table import Drop, Family, Row
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.orders import GroupedQkv, RotaryInterleaved, RowOrder


def interleave_query(spec: ModelSpec) -> RowOrder:
    """Order of the query rows in GGUF."""
    return RotaryInterleaved(spec.heads, spec.head_dim)


def interleave_key(spec: ModelSpec) -> RowOrder:
    """Order of the key rows in GGUF."""
    return RotaryInterleaved(spec.kv_heads, spec.head_dim)


def query_places(spec: ModelSpec) -> RowOrder:
    """Where the query rows stand in Megatron-Core's linear_qkv."""
    return GroupedQkv("query", spec.heads, spec.kv_heads, spec.head_dim)


def key_places(spec: ModelSpec) -> RowOrder:
    """Where the key rows stand in Megatron-Core's linear_qkv."""
    return GroupedQkv("key", spec.heads, spec.kv_heads, spec.head_dim)


def value_places(spec: ModelSpec) -> RowOrder:
    """Where the value rows stand in Megatron-Core's linear_qkv."""
    return GroupedQkv("value", spec.heads, spec.kv_heads, spec.head_dim)


def _untied(spec: ModelSpec) -> bool:
    return not spec.tied


def _attention_bias(spec: ModelSpec) -> bool:
    return spec.attention_bias


def _mlp_bias(spec: ModelSpec) -> bool:
    return spec.mlp_bias


OUTER_ROWS = (
    Row(
        "model.embed_tokens.weight",
        "token_embd.weight",
        ("vocab", "hidden"),
        megatron="embedding.word_embeddings.weight",
    ),
    Row("model.norm.weight", "output_norm.weight", ("hidden",), megatron="decoder.final_layernorm.weight"),
    Row("lm_head.weight", "output.weight", ("vocab", "hidden"), required=_untied, megatron="output_layer.weight"),
)

_HF = "model.layers.{layer}."
_GGUF = "blk.{layer}."
_MEGATRON = "decoder.layers.{layer}."
_QKV = _MEGATRON + "self_attention.linear_qkv."
_FC1 = _MEGATRON + "mlp.linear_fc1."

ATTENTION_ROWS = (
    Row(_HF + "input_layernorm.weight", _GGUF + "attn_norm.weight", ("hidden",), megatron=_QKV + "layer_norm_weight"),
    Row(
        _HF + "self_attn.q_proj.weight",
        _GGUF + "attn_q.weight",
        ("query", "hidden"),
        interleave_query,
        megatron=_QKV + "weight",
        places=query_places,
    ),
    Row(
        _HF + "self_attn.k_proj.weight",
        _GGUF + "attn_k.weight",
        ("key_value", "hidden"),
        interleave_key,
        megatron=_QKV + "weight",
        places=key_places,
    ),
    Row(
        _HF + "self_attn.v_proj.weight",
        _GGUF + "attn_v.weight",
        ("key_value", "hidden"),
        megatron=_QKV + "weight",
        places=value_places,
    ),
    Row(
        _HF + "self_attn.o_proj.weight",
        _GGUF + "attn_output.weight",
        ("hidden", "query"),
        megatron=_MEGATRON + "self_attention.linear_proj.weight",
    ),
    Row(
        _HF + "post_attention_layernorm.weight",
        _GGUF + "ffn_norm.weight",
        ("hidden",),
        megatron=_FC1 + "layer_norm_weight",
    ),
)

ATTENTION_BIAS_ROWS = (
    Row(
        _HF + "self_attn.q_proj.bias",
        _GGUF + "attn_q.bias",
        ("query",),
        interleave_query,
        _attention_bias,
        megatron=_QKV + "bias",
        places=query_places,
    ),
    Row(
        _HF + "self_attn.k_proj.bias",
        _GGUF + "attn_k.bias",
        ("key_value",),
        interleave_key,
        _attention_bias,
        megatron=_QKV + "bias",
        places=key_places,
    ),
    Row(
        _HF + "self_attn.v_proj.bias",
        _GGUF + "attn_v.bias",
        ("key_value",),
        required=_attention_bias,
        megatron=_QKV + "bias",
        places=value_places,
    ),
    Row(
        _HF + "self_attn.o_proj.bias",
        _GGUF + "attn_output.bias",
        ("hidden",),
        required=_attention_bias,
        megatron=_MEGATRON + "self_attention.linear_proj.bias",
    ),
)

MLP_ROWS = (
    Row(
        _HF + "mlp.gate_proj.weight",
        _GGUF + "ffn_gate.weight",
        ("ffn", "hidden"),
        megatron=_FC1 + "weight",
    ),
    Row(
        _HF + "mlp.up_proj.weight",
        _GGUF + "ffn_up.weight",
        ("ffn", "hidden"),
        megatron=_FC1 + "weight",
    ),
    Row(
        _HF + "mlp.down_proj.weight",
        _GGUF + "ffn_down.weight",
        ("hidden", "ffn"),
        megatron=_MEGATRON + "mlp.linear_fc2.weight",
    ),
)

MLP_BIAS_ROWS = (
    Row(
        _HF + "mlp.gate_proj.bias",
        _GGUF + "ffn_gate.bias",
        ("ffn",),
        required=_mlp_bias,
        megatron=_FC1 + "bias",
    ),
    Row(
        _HF + "mlp.up_proj.bias",
        _GGUF + "ffn_up.bias",
        ("ffn",),
        required=_mlp_bias,
        megatron=_FC1 + "bias",
    ),
    Row(
        _HF + "mlp.down_proj.bias",
        _GGUF + "ffn_down.bias",
        ("hidden",),
        required=_mlp_bias,
        megatron=_MEGATRON + "mlp.linear_fc2.bias",
    ),
)

DENSE_ROWS = OUTER_ROWS + ATTENTION_ROWS + MLP_ROWS

ROTARY_TABLE = Drop("*.rotary_emb.inv_freq", "rotary frequencies follow from rope_theta")

# What transformers assumes where config.json is silent (configuration_llama.py, configuration_mistral.py). Both classes
# fill in head_dim, so the field's converters write it even where the file does not.
LLAMA_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "fills_head_dim": True}
MISTRAL_DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "fills_head_dim": True,
}


def _read_config(config: Config) -> ModelSpec:
    defaults = MISTRAL_DEFAULTS if config.get("model_type") == "mistral" else LLAMA_DEFAULTS
    return read_spec(config, defaults, family="llama", gguf_architecture="llama")


def write_mistral_config(spec: ModelSpec) -> dict[str, Any]:
    """The configuration of a dense Mistral; the window is named, since transformers assumes one where it is not."""
    return {
        **write_spec(spec, "MistralForCausalLM", "mistral"),
        "sliding_window": spec.sliding_window,
    }


def _write_config(spec: ModelSpec, origin: str) -> dict[str, Any]:
    if origin == "MistralForCausalLM" and not (spec.attention_bias or spec.mlp_bias):
        return write_mistral_config(spec)
    return {
        **write_spec(spec, "LlamaForCausalLM", "llama"),
        "attention_bias": spec.attention_bias,
        "mlp_bias": spec.mlp_bias,
    }


FAMILY = Family(
    name="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"),
    read_config=_read_config,
    rows=DENSE_ROWS + ATTENTION_BIAS_ROWS + MLP_BIAS_ROWS,
    drops=(ROTARY_TABLE,),
    write_config=_write_config,
    gguf_architecture="llama",
)
