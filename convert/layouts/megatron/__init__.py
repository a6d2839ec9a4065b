"""The Megatron-Core layout: torch_dist and the legacy torch format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.layouts.hf import DTYPE
from mconv.convert.layouts.layout import Layout, LayoutOption, Planned

if TYPE_CHECKING:
    from mconv.convert.model.checkpoint import Checkpoint

TRACKER = "latest_checkpointed_iteration.txt"
INDEX = ".metadata"
RANK_FOLDERS = "mp_rank_*"

HF_CONFIG = LayoutOption(
    "hf_config",
    "config.json and tokenizer of the model, if the checkpoint does not contain them.",
    metavar="DIR|FILE",
    is_path=True,
)


def _detect(path: Path) -> bool:
    """Whether a folder is a Megatron checkpoint, or contains a tracker file and its checkpoints."""
    return (path / TRACKER).is_file() or (path / INDEX).is_file() or any(path.glob(RANK_FOLDERS))


def _open(path: Path, *, hf_config: Path | None) -> Checkpoint:
    from mconv.convert.layouts.megatron.reader import open_megatron

    return open_megatron(path, hf_config)


def _plan(checkpoint: Checkpoint, *, dtype: str) -> Planned:
    from mconv.convert.layouts.megatron.writer import plan_megatron
    from mconv.convert.tensors.dtypes import wanted_type

    plan = plan_megatron(checkpoint, wanted_type(dtype))
    return Planned(plan, plan.main_type, (*checkpoint.notes, *checkpoint.vocabulary().notes))


def _refuses(folder: Path) -> str:
    return "" if _detect(folder) else "and is not a Megatron checkpoint"


LAYOUT = Layout(
    name="megatron",
    title="a Megatron-Core checkpoint",
    path_kind="folder",
    detect=_detect,
    open=_open,
    plan=_plan,
    read_options=(HF_CONFIG,),
    write_options=(DTYPE,),
    source_name="DIR",
    source_example="checkpoints/run-7/ --hf-config Mistral-7B-v0.3/",
    target_example="mistral-7b-megatron/",
    source_help="DIR contains the tracker file, or is the folder of one iteration, in the torch_dist or the legacy "
    "torch format. Checkpoints of any parallelism are read as one model; the optimizer state is left out.",
    target_help="The checkpoint is in the torch_dist format and loads at any tensor, pipeline and expert parallelism. "
    "Configuration and tokenizer are stored beside the weights.",
    refuses=_refuses,
)
