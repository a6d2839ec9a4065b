"""Load a Megatron checkpoint whole, as its own libraries do: FOLDER of the iteration, `dcp` or `megatron-core`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist


def load_with_torch(folder: Path) -> None:
    """torch.distributed.checkpoint, without a process group."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata.items()
    state = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in entries if hasattr(entry, "size")
    }
    dcp.load(state, storage_reader=reader, no_dist=True)


def load_with_megatron_core(folder: Path) -> None:
    """megatron-core's dist_checkpointing, as one rank."""
    from megatron.core import dist_checkpointing

    with tempfile.TemporaryDirectory() as store:
        dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=0, world_size=1)
        dist_checkpointing.load_plain_tensors(str(folder))
        dist.destroy_process_group()


if __name__ == "__main__":
    {"dcp": load_with_torch, "megatron-core": load_with_megatron_core}[sys.argv[2]](Path(sys.argv[1]))
