"""Hyperparameters in the words of a training run, and back into those of config.json.

Megatron-LM keeps its command line as `args` in the common state (megatron/training/arguments.py); Megatron Bridge
writes run_config.yaml, whose `model` has the names of TransformerConfig. Neither is needed, and neither is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mconv.convert.containers.pickles import Record
from mconv.convert.containers.torch_dist import DistributedCheckpoint
from mconv.convert.containers.torch_zip import TorchZip, open_file
from mconv.convert.errors import FormatError, MappingError
from mconv.convert.model.spec import ModelSpec

COMMON = "common.pt"
RUN_CONFIG = "run_config.yaml"
_COMMON_KEY = "common_state/shard_0_1"

_NAMES: dict[str, tuple[str, ...]] = {
    "num_hidden_layers": ("num_layers",),
    "hidden_size": ("hidden_size",),
    "intermediate_size": ("moe_ffn_hidden_size", "ffn_hidden_size"),
    "num_attention_heads": ("num_attention_heads",),
    "num_key_value_heads": ("num_query_groups",),
    "head_dim": ("kv_channels",),
    "rms_norm_eps": ("norm_epsilon", "layernorm_epsilon"),
    "rope_theta": ("rotary_base",),
    "max_position_embeddings": ("max_position_embeddings", "seq_length"),
    "num_local_experts": ("num_experts", "num_moe_experts"),
    "num_experts_per_tok": ("moe_router_topk",),
}
"""Member of config.json, and the names that it has in a run: the first that is set counts."""

_REQUIRED = tuple(name for name in _NAMES if name not in ("num_local_experts", "num_experts_per_tok"))

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
"""Settings of a run that make a model which no family of ours computes."""


def read_arguments(folder: Path, checkpoint: DistributedCheckpoint) -> dict[str, Any]:
    """What a run left of its settings: name to value; empty where it left none.

    Raises:
        FormatError: a file is damaged, or a pickle that reaches for something it should not.
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
    """The common state: a file of its own up to Megatron-Core 0.18, an object among the others from 0.19 on."""
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
        """Objects of Python, of which such a file has some, become None: none is made."""

    Loader.add_multi_constructor("", lambda *_: None)
    try:
        content = yaml.load(path.read_bytes(), Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise FormatError(f"{path.name}: not YAML ({error})", "copy the checkpoint again") from error
    model = content.get("model") if isinstance(content, dict) else None
    return model if isinstance(model, dict) else {}


def config_of(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the settings of a run make of config.json, and which of its members they leave open.

    Raises:
        MappingError: a setting that no supported family has.
    """
    for name, refused in _UNSUPPORTED.items():
        if arguments.get(name) in refused:
            raise MappingError(
                f"the run was made with {name}={arguments[name]}", "no supported model family computes this"
            )
    config: dict[str, Any] = {}
    for member, names in _NAMES.items():
        value = next((arguments[name] for name in names if _is_number(arguments.get(name))), None)
        if value is not None:
            config[member] = value
    # TransformerConfig takes a missing number of groups for as many as there are heads.
    ungrouped = arguments.get("group_query_attention") is False or "num_key_value_heads" not in config
    if ungrouped and "num_attention_heads" in config:
        config["num_key_value_heads"] = config["num_attention_heads"]
    if "head_dim" not in config and {"hidden_size", "num_attention_heads"} <= config.keys():
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    untied, tied = (
        arguments.get("untie_embeddings_and_output_weights"),
        arguments.get("share_embeddings_and_output_weights"),
    )
    if isinstance(untied, bool) or isinstance(tied, bool):
        config["tie_word_embeddings"] = tied if isinstance(tied, bool) else not untied
    if _is_number(arguments.get("vocab_size")):
        config["vocab_size"] = arguments["vocab_size"]
    # Positions before the own one that are attended to; -1 for all of them.
    window = arguments.get("window_size")
    if isinstance(window, (list, tuple)) and window and _is_number(window[0]):
        config["sliding_window"] = window[0] + 1
    if arguments.get("position_embedding_type") not in (None, "rope") or any(
        arguments.get(name) for name in ("use_rope_scaling", "rope_scaling", "rotary_seq_len_interpolation_factor")
    ):
        # How the frequencies were scaled is only partly among the settings.
        config.pop("rope_theta", None)
    experts = "num_local_experts" in config
    config["architectures"] = ["MixtralForCausalLM" if experts else "MistralForCausalLM"]
    config["model_type"] = "mixtral" if experts else "mistral"
    return config, tuple(member for member in _REQUIRED if member not in config)


def check_configuration(known: Mapping[str, Any], spec: ModelSpec) -> None:
    """Hold what a run says of its model against the configuration that came with it.

    Args:
        known: members of config.json, see `config_of`.

    Raises:
        MappingError: they contradict each other.
    """
    ours = {
        "num_hidden_layers": spec.layers,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.rms_norm_eps,
        "rope_theta": spec.rope.theta,
        "num_local_experts": spec.experts or None,
        "num_experts_per_tok": spec.experts_per_token if spec.experts else known.get("num_experts_per_tok"),
        "tie_word_embeddings": spec.tied,
        "attention_bias": spec.attention_bias,
        "mlp_bias": spec.mlp_bias,
    }
    for member, value in ours.items():
        if member in known and known[member] != value:
            raise MappingError(
                f"config.json has {member} {value}, but the run was made with {known[member]}",
                "give the configuration of this very model with --hf-config",
            )


def arguments_of(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """What Megatron-LM's `--use-checkpoint-args` asks for (megatron/training/checkpointing.py)."""
    rope = spec.rope
    arguments: dict[str, Any] = {
        "num_layers": spec.layers,
        "hidden_size": spec.hidden,
        "ffn_hidden_size": spec.ffn,
        "num_attention_heads": spec.heads,
        "group_query_attention": spec.kv_heads != spec.heads,
        "num_query_groups": spec.kv_heads,
        "kv_channels": spec.head_dim,
        "max_position_embeddings": spec.context,
        "seq_length": spec.context,
        "position_embedding_type": "yarn" if rope.type == "yarn" else "rope",
        "add_position_embedding": True,
        "rotary_base": int(rope.theta) if rope.theta == int(rope.theta) else rope.theta,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "use_rope_scaling": rope.type == "llama3",
        "rope_scaling_factor": rope.factor if rope.type == "llama3" else 8.0,
        "rotary_seq_len_interpolation_factor": rope.factor if rope.type == "linear" else None,
        "normalization": "RMSNorm",
        "norm_epsilon": spec.rms_norm_eps,
        "apply_layernorm_1p": False,
        "swiglu": True,
        "add_bias_linear": spec.attention_bias or spec.mlp_bias,
        "add_qkv_bias": spec.attention_bias,
        "untie_embeddings_and_output_weights": not spec.tied,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "vocab_size": spec.vocab,
        "padded_vocab_size": spec.vocab,
        "make_vocab_size_divisible_by": 1,
        "tokenizer_type": "HuggingFaceTokenizer",
        "num_experts": spec.experts or None,
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
        arguments |= {"moe_router_topk": spec.experts_per_token, "moe_router_pre_softmax": False}
    if spec.sliding_window is not None:
        arguments["window_size"] = (spec.sliding_window - 1, 0)
    return arguments


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
