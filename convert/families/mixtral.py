"""Mixtral: Mistral's attention with a router and a stack of experts in place of the MLP."""

from __future__ import annotations

from typing import Any

from mconv.convert.families.config import Config, read_spec, write_spec
from mconv.convert.families.llama import ATTENTION_ROWS, OUTER_ROWS, ROTARY_TABLE
from mconv.convert.families.table import Family, FusedTensor, Row
from mconv.convert.model.spec import ModelSpec

_HF = "model.layers.{layer}."
_GGUF = "blk.{layer}."
_GATE = _HF + "block_sparse_moe.experts.{expert}.w1.weight"
_DOWN = _HF + "block_sparse_moe.experts.{expert}.w2.weight"
_UP = _HF + "block_sparse_moe.experts.{expert}.w3.weight"
_MEGATRON = "decoder.layers.{layer}.mlp."
_FC1 = _MEGATRON + "experts.experts.{expert}.linear_fc1.weight"
_FC2 = _MEGATRON + "experts.experts.{expert}.linear_fc2.weight"

EXPERT_ROWS = (
    Row(
        _HF + "block_sparse_moe.gate.weight",
        _GGUF + "ffn_gate_inp.weight",
        ("experts", "hidden"),
        megatron=_MEGATRON + "router.weight",
    ),
    Row(_GATE, _GGUF + "ffn_gate_exps.weight", ("ffn", "hidden"), group="experts", megatron=_FC1),
    Row(_DOWN, _GGUF + "ffn_down_exps.weight", ("hidden", "ffn"), group="experts", megatron=_FC2),
    Row(_UP, _GGUF + "ffn_up_exps.weight", ("ffn", "hidden"), group="experts", megatron=_FC1),
)

# transformers 5 holds the experts fused in memory and splits them again in save_pretrained; a state dict saved as it
# stands has these names instead.
FUSED = (
    FusedTensor(_HF + "mlp.gate.weight", ((_HF + "block_sparse_moe.gate.weight", "experts"),)),
    FusedTensor(_HF + "mlp.experts.gate_up_proj", ((_GATE, "ffn"), (_UP, "ffn"))),
    FusedTensor(_HF + "mlp.experts.down_proj", ((_DOWN, "hidden"),)),
)

# configuration_mixtral.py of transformers; unlike Mistral's, it leaves head_dim alone.
_DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def _read_config(config: Config) -> ModelSpec:
    return read_spec(config, _DEFAULTS, family="mixtral", gguf_architecture="llama")


def _write_config(spec: ModelSpec, _origin: str) -> dict[str, Any]:
    return {
        **write_spec(spec, "MixtralForCausalLM", "mixtral"),
        "num_experts_per_tok": spec.experts_per_token,
        "num_local_experts": spec.experts,
        "sliding_window": spec.sliding_window,
    }


FAMILY = Family(
    name="mixtral",
    classes=("MixtralForCausalLM",),
    read_config=_read_config,
    rows=OUTER_ROWS + ATTENTION_ROWS + EXPERT_ROWS,
    drops=(ROTARY_TABLE,),
    fused_tensors=FUSED,
    write_config=_write_config,
    gguf_architecture="llama",
    mixture=True,
)
