"""Mixtral: Mistral's attention with a router and a stack of experts in place of the MLP."""

from __future__ import annotations

from typing import Any

from mconv.convert.families.config import Config, Defaults, read_spec, write_spec
from mconv.convert.families.llama import ATTENTION, LAYER, OUTER, ROTARY_TABLE
from mconv.convert.families.table import Family, FusedTensor, Named
from mconv.convert.model.fields import (
    CONTEXT,
    EXPERTS,
    EXPERTS_PER_TOKEN,
    KV_HEADS,
    RMS_NORM_EPS,
    ROPE_THETA,
    SLIDING_WINDOW,
)
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec

_EXPERT = LAYER + "block_sparse_moe.experts.{expert}."

_EXPERTS = (
    Named(Role.ROUTER, LAYER + "block_sparse_moe.gate.weight"),
    Named(Role.EXPERT_GATE, _EXPERT + "w1.weight"),
    Named(Role.EXPERT_DOWN, _EXPERT + "w2.weight"),
    Named(Role.EXPERT_UP, _EXPERT + "w3.weight"),
)

# transformers 5 holds the experts fused in memory and splits them again in save_pretrained; a state dict saved directly
# has these names instead.
_FUSED = (
    FusedTensor(LAYER + "mlp.gate.weight", (Role.ROUTER,)),
    FusedTensor(LAYER + "mlp.experts.gate_up_proj", (Role.EXPERT_GATE, Role.EXPERT_UP)),
    FusedTensor(LAYER + "mlp.experts.down_proj", (Role.EXPERT_DOWN,)),
)

# configuration_mixtral.py of transformers; unlike Mistral's, it does not fill in the length of a head.
_DEFAULTS: Defaults = {
    KV_HEADS: 8,
    CONTEXT: 131072,
    RMS_NORM_EPS: 1e-5,
    ROPE_THETA: 1000000.0,
    EXPERTS: 8,
    EXPERTS_PER_TOKEN: 2,
}


def _read_config(config: Config) -> ModelSpec:
    return read_spec(config, _DEFAULTS, family="mixtral")


def _write_config(spec: ModelSpec, _origin: str) -> dict[str, Any]:
    return write_spec(spec, "MixtralForCausalLM", "mixtral", EXPERTS_PER_TOKEN, EXPERTS, SLIDING_WINDOW)


FAMILY = Family(
    name="mixtral",
    classes=("MixtralForCausalLM",),
    read_config=_read_config,
    tensors=OUTER + ATTENTION + _EXPERTS,
    drops=(ROTARY_TABLE,),
    fused_tensors=_FUSED,
    write_config=_write_config,
)
