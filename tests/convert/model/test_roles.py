"""Roles: what follows from each, and where each layout keeps it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mconv.convert.errors import MappingError
from mconv.convert.families import families, family_named
from mconv.convert.families.matching import canonical_names, in_layers
from mconv.convert.families.table import Family, Named
from mconv.convert.layouts.gguf import names
from mconv.convert.layouts.gguf.architecture import ARCHITECTURES, architecture_of, family_of
from mconv.convert.layouts.gguf.mapping import gguf_targets
from mconv.convert.layouts.megatron import keys
from mconv.convert.layouts.megatron.mapping import megatron_tensors
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.nodes import ConstantTensor, Tensor
from mconv.convert.tensors.orders import RotaryInterleaved
from mconv.quantize.categories import category_of, keeps_type

SPEC = ModelSpec(
    "llama", layers=2, hidden=12, ffn=20, heads=4, kv_heads=2, head_dim=6, vocab=32, context=64, rms_norm_eps=1e-5,
    experts=3, experts_per_token=2,
)  # fmt: skip
FAMILIES = pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
ROLES = pytest.mark.parametrize("role", Role, ids=lambda role: role.value)


@ROLES
def test_the_spec_measures_every_axis(role: Role) -> None:
    assert 0 < len(role.axes) <= 2
    assert all(length > 0 for length in SPEC.shape_of(role))


@ROLES
def test_few_values_stay_float32(role: Role) -> None:
    matrices = {
        "token_embedding", "output", "attention_q", "attention_k", "attention_v", "attention_output", "ffn_gate",
        "ffn_up", "ffn_down", "expert_gate", "expert_up", "expert_down",
    }  # fmt: skip
    assert role.keeps_float32 == (role.value not in matrices)
    assert role.is_norm == role.value.endswith("_norm")
    assert not role.is_norm or role.keeps_float32


@ROLES
def test_ranks_never_share_the_hidden_axis(role: Role) -> None:
    axis = role.shared_axis
    if axis is None:
        assert set(role.axes) <= {"hidden", "experts", "rotary_pairs"}
    else:
        assert role.axes[axis] in ("vocab", "query", "key_value", "ffn")


@ROLES
def test_an_expert_has_what_a_dense_model_has(role: Role) -> None:
    assert role.is_expert == role.value.startswith("expert_")
    assert role.dense.value == role.value.replace("expert_", "ffn_")
    assert role.dense.axes == role.axes


@FAMILIES
def test_every_role_of_a_family_has_a_place_in_every_layout(family: Family) -> None:
    for named in family.tensors:
        assert names.name_of(named.role, 0)
        assert keys.key_of(named.role)
        in_layer = "{layer}" in named.name
        assert in_layer == ("{layer}" in names.NAMES[named.role]) == ("{layer}" in keys.KEYS[named.role])
        assert named.role.is_expert == ("{expert}" in named.name) == ("{expert}" in keys.KEYS[named.role])


@FAMILIES
def test_names_are_unique_and_lead_back(family: Family) -> None:
    found: Counter[str] = Counter()
    for layer, entries in in_layers(family, SPEC):
        for named in entries:
            canonical = canonical_names(named, layer or 0, SPEC)
            found.update((*canonical, names.name_of(named.role, layer)))
            assert {family.role_of(name) for name in canonical} == {named.role}
            assert names.role_of(names.name_of(named.role, layer)) is named.role
            assert names.layer_of(names.name_of(named.role, layer)) == layer
    assert set(found.values()) == {1}
    assert len({named.role for named in family.tensors}) == len(family.tensors)


def test_no_two_roles_share_a_gguf_name() -> None:
    assert set(names.NAMES) == set(Role)
    assert len(set(names.NAMES.values())) == len(Role)
    assert len({names.short_name(role) for role in Role if not role.value.endswith("_bias")}) == len(
        [role for role in Role if not role.value.endswith("_bias")]
    )


def test_what_is_fused_fits_together() -> None:
    for key in set(keys.KEYS.values()):
        fused = [role for role, known in keys.KEYS.items() if known == key]
        assert len({role.axes[1:] for role in fused}) == 1
        assert len({role.shared_axis for role in fused}) == 1
        assert len({keys.places(role, SPEC) is None for role in fused}) == 1
    assert keys.cut_of("decoder.layers.17.self_attention.linear_qkv.weight") == (0, 1)
    assert keys.cut_of("decoder.layers.17.mlp.linear_fc1.weight") == (0, 2)
    assert keys.cut_of("decoder.layers.17.mlp.experts.experts.3.linear_fc1.weight") == (0, 2)
    assert keys.cut_of("decoder.layers.mlp.linear_fc2.weight") == (1, 1)
    assert keys.cut_of("decoder.layers.0.mlp.linear_fc2.bias") == (None, 1)
    assert keys.cut_of("embedding.word_embeddings.weight") == (0, 1)
    assert keys.cut_of("decoder.layers.0.mlp.router.weight") == (None, 1)


@pytest.mark.parametrize(
    "name",
    ["blk.0.attn_qkv.weight", "blk.0.attn_q_norm.weight", "output.bias", "blk.attn_q.weight", "x.token_embd.weight"],
)
def test_other_names_have_no_role(name: str) -> None:
    assert names.role_of(name) is None


@ROLES
def test_roles_and_parts_of_names_quantize_alike(role: Role) -> None:
    """What llama-quantize does by name, for every role that takes part."""
    name = names.name_of(role, 5)
    assert keeps_type(name, role) == (keeps_type(name, None) or len(role.axes) == 1)
    if not keeps_type(name, role) and role not in (Role.TOKEN_EMBEDDING, Role.OUTPUT):
        assert category_of(name, role) is category_of(name, None)


def test_a_role_that_a_layout_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MappingError, match="the Megatron layout has no place for the role rope_factors"):
        keys.key_of(Role.ROPE_FACTORS)
    family = family_named("llama")
    with_factors = replace(family, tensors=(*family.tensors, Named(Role.ROPE_FACTORS, "model.rope_factors")))
    with pytest.raises(MappingError, match="the Megatron layout has no place for the role rope_factors"):
        megatron_tensors(with_factors, SPEC, tensors_of(with_factors))
    monkeypatch.delitem(names.NAMES, Role.ATTENTION_V)
    with pytest.raises(MappingError, match="the GGUF layout has no place for the role attention_v"):
        gguf_targets(family, SPEC, tensors_of(family))


def test_every_family_has_an_architecture_that_leads_back() -> None:
    assert set(ARCHITECTURES) == {family.name for family in families()}
    for family in families():
        assert family_of(architecture_of(family.name), family.is_mixture) is family
    with pytest.raises(MappingError, match="GGUF has no architecture for the mamba family"):
        architecture_of("mamba")
    with pytest.raises(MappingError, match="GGUF architecture 'mistral3' with experts is not supported"):
        family_of("mistral3", mixture=True)


def test_neighbours_that_are_turned_already_keep_their_places() -> None:
    """A family whose canonical tensors have llama.cpp's order."""
    family = family_named("llama")
    tensors = tensors_of(family)
    targets = {target.role: target for target in gguf_targets(family, SPEC, tensors)}
    assert targets[Role.ATTENTION_Q].rows.order == RotaryInterleaved(4, 6)
    assert targets[Role.ATTENTION_K_BIAS].rows.order == RotaryInterleaved(2, 6)
    assert targets[Role.ATTENTION_V].rows.order is None
    as_they_are = gguf_targets(replace(family, rotary="interleaved"), SPEC, tensors)
    assert {target.rows.order for target in as_they_are} == {None}


@FAMILIES
def test_targets_carry_their_roles(family: Family) -> None:
    spec = SPEC if family.is_mixture else replace(SPEC, experts=0)
    targets = gguf_targets(family, spec, tensors_of(family))
    assert {target.role for target in targets} == {named.role for named in family.tensors}
    for target in targets:
        assert names.role_of(target.name) is target.role
        assert target.role is not None
        assert target.shape[-len(target.role.axes) :] == spec.shape_of(target.role)


def test_stacks_stand_side_by_side() -> None:
    """Gate, down and up after the last of their experts, wherever those lie in the source."""
    family = family_named("mixtral")
    order = [target.name for target in gguf_targets(family, SPEC, dict(reversed(tensors_of(family).items())))]
    stacks = [place for place, name in enumerate(order) if re.search("blk.0.*_exps", name)]
    assert [order[place] for place in stacks] == [f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "down", "up")]
    assert stacks == list(range(stacks[0], stacks[0] + 3))


def tensors_of(family: Family) -> dict[str, Tensor]:
    """A whole model of zeros, by canonical name."""
    found: dict[str, Tensor] = {}
    for layer, entries in in_layers(family, SPEC):
        for named in entries:
            for name in canonical_names(named, layer or 0, SPEC):
                zeros = ConstantTensor.of(name, np.zeros(SPEC.shape_of(named.role), np.float32))
                found[name] = replace(zeros, position=(0, len(found)))
    return found
