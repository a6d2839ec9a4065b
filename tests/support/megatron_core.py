"""megatron-core itself, on a CPU: saves a random model, or loads a checkpoint, computes logits and saves it again.

Run as a program, one process for each rank, with RANK and WORLD_SIZE set: megatron-core keeps its state in the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast


def run_ranks(*jobs: dict[str, Any]) -> None:
    """Start the ranks of jobs that take as many of them, and wait until they did one job after the other.

    Args:
        jobs: `tensor`, `pipeline`, `expert` (sizes of the parallel groups, one unless told), `config` (a Hugging Face
            config as a dict), and what to do with the model, in this order: `load` (folder),
            `tokens` (list of ids) with `logits` (a .npy file), `save` (an empty folder), `save_ranks` (a folder for
            the legacy format, one file a rank). Also `padded_vocab`: rows of
            the embedding; `sharding`: what decides on the keys that are saved; `expert_tensor`: tensor ranks that share
            an expert; `grouped`: whether the experts are GroupedMLP's, which compute on a GPU alone.
    """
    jobs = tuple({"tensor": 1, "pipeline": 1, "expert": 1, "expert_tensor": 1, **job} for job in jobs)
    (world,) = {max(job["tensor"], job["expert"]) * job["pipeline"] for job in jobs}
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps({"jobs": jobs, "store": f"file://{folder}/store"}, default=str)
        environment = {**os.environ, "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, text],
                env={**environment, "RANK": str(rank)},
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
            for rank in range(world)
        ]
        try:
            errors = [rank.communicate(timeout=300)[1] for rank in ranks]
        finally:
            for process in ranks:
                process.kill()
    failed = [error for process, error in zip(ranks, errors, strict=True) if process.returncode]
    if failed:
        raise RuntimeError(failed[0][-4000:])


def _prepare_cpu() -> None:
    """What megatron-core 0.16.1 assumes of a machine with CUDA."""
    import torch

    cpu, cuda, tensor = torch.device("cpu"), cast(Any, torch.cuda), cast(Any, torch.Tensor)
    cuda.synchronize = lambda *_, **__: None
    cuda.current_device = lambda: cpu
    tensor.cuda = lambda self, *_, **__: self
    import megatron.core.fusions.fused_softmax as softmax
    import megatron.core.tensor_parallel.random as generators
    import megatron.core.transformer.moe.moe_utils as moe
    from megatron.core.transformer.moe import grouped_gemm_util

    generators.CudaRNGStatesTracker.fork = lambda *_, **__: contextlib.nullcontext()
    softmax.get_default_causal_mask = lambda size: torch.triu(torch.ones(size, size), diagonal=1).bool()
    grouped_gemm_util.assert_grouped_gemm_is_available = lambda: None
    if not hasattr(moe, "te_general_gemm"):
        moe.te_general_gemm = None


def _build(job: dict[str, Any]) -> Any:
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    hf = job["config"]
    dtype = getattr(torch, hf["dtype"])
    experts = hf.get("num_local_experts")
    mixture = {
        "num_moe_experts": experts,
        "moe_router_topk": hf.get("num_experts_per_tok"),
        "moe_router_pre_softmax": False,
        "moe_token_dispatcher_type": "allgather",
        "moe_router_load_balancing_type": "none",
    }
    config = TransformerConfig(
        num_layers=hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        ffn_hidden_size=hf["intermediate_size"],
        num_attention_heads=hf["num_attention_heads"],
        num_query_groups=hf["num_key_value_heads"],
        kv_channels=hf["head_dim"],
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        layernorm_epsilon=hf["rms_norm_eps"],
        tensor_model_parallel_size=job["tensor"],
        pipeline_model_parallel_size=job["pipeline"],
        expert_model_parallel_size=job["expert"],
        expert_tensor_parallel_size=job["expert_tensor"],
        moe_grouped_gemm=job.get("grouped", False),
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_cpu_initialization=True,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        **(mixture if experts else {}),
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(num_experts=experts, moe_grouped_gemm=job.get("grouped"), normalization="RMSNorm"),
        vocab_size=job.get("padded_vocab", hf["vocab_size"]),
        max_sequence_length=hf["max_position_embeddings"],
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=hf.get("tie_word_embeddings", False),
        position_embedding_type="rope",
        rotary_base=hf["rope_parameters"]["rope_theta"],
    )
    return model.to(dtype).eval()


def _logits(model: Any, job: dict[str, Any]) -> None:
    """Logits of the tokens; the last stage of the pipeline and rank 0 of its tensor group write them."""
    import numpy as np
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    tokens = torch.tensor([job["tokens"]])
    length = tokens.shape[1]
    mask = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), 1)
    if not parallel_state.is_pipeline_first_stage():
        hidden = torch.empty(length, 1, job["config"]["hidden_size"], dtype=model.config.params_dtype)
        dist.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(hidden)
    with torch.no_grad():
        out = model(tokens, torch.arange(length)[None], mask)
    if not parallel_state.is_pipeline_last_stage():
        dist.send(out.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
        return
    parts = [torch.empty_like(out) for _ in range(job["tensor"])]
    dist.all_gather(parts, out.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    if parallel_state.get_tensor_model_parallel_rank() == 0:
        np.save(job["logits"], torch.cat(parts, -1)[0].float().numpy())


def _save_rank(model: Any, job: dict[str, Any]) -> None:
    """What Megatron-LM's `--ckpt-format torch` writes (its training loop is not part of the megatron-core package)."""
    import argparse

    import torch
    from megatron.core import parallel_state
    from megatron.core.transformer.enums import AttnBackend

    tensor, pipeline = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
    )
    expert = parallel_state.get_expert_model_parallel_rank()
    name = f"mp_rank_{tensor:02d}"
    name += f"_{pipeline:03d}" * (job["pipeline"] > 1) + f"_{expert:03d}" * (job["expert"] > 1)
    arguments = argparse.Namespace(
        tensor_model_parallel_size=job["tensor"],
        pipeline_model_parallel_size=job["pipeline"],
        expert_model_parallel_size=job["expert"],
        expert_tensor_parallel_size=job["expert_tensor"],
        num_layers=job["config"]["num_hidden_layers"],
        attention_backend=AttnBackend.auto,
    )
    folder = Path(job["save_ranks"], name)
    folder.mkdir(parents=True)
    torch.save(
        {
            "args": arguments,
            "checkpoint_version": 3.0,
            "iteration": 7,
            "model": model.state_dict(),
            "optimizer": {"step": 7, "exp_avg": [torch.zeros(8)]},
            "rng_state": [{"torch_rng_state": torch.get_rng_state()}],
        },
        folder / "model_optim_rng.pt",
    )


def _work(store: str, jobs: list[dict[str, Any]]) -> None:
    _prepare_cpu()
    import torch.distributed as dist
    from megatron.core import parallel_state

    dist.init_process_group(
        "gloo", init_method=store, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
    )
    for job in jobs:
        _do(job)
        dist.barrier()
        parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _do(job: dict[str, Any]) -> None:
    import torch
    from megatron.core import dist_checkpointing, parallel_state

    parallel_state.initialize_model_parallel(
        job["tensor"],
        job["pipeline"],
        expert_model_parallel_size=job["expert"],
        expert_tensor_parallel_size=job["expert_tensor"],
    )
    torch.manual_seed(0)
    model = _build(job)
    if "load" in job:
        loaded = dist_checkpointing.load({"model": model.sharded_state_dict()}, job["load"])
        model.load_state_dict(loaded["model"])
    if "logits" in job:
        _logits(model, job)
    if "save" in job:
        state = model.sharded_state_dict(metadata=job.get("sharding"))
        dist_checkpointing.save({"model": state, "checkpoint_version": 3.0}, job["save"])
    if "save_ranks" in job:
        _save_rank(model, job)


if __name__ == "__main__":
    _work(**json.loads(sys.argv[1]))
