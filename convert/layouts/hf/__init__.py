"""The Hugging Face layout: a folder with config.json, safetensors files and a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.layouts.hf.names import CARD_FILES, CONFIG, GENERATION, INDEX, TOKENIZER_FILES, WEIGHT_FILES
from mconv.convert.layouts.layout import Layout, LayoutOption, Planned

if TYPE_CHECKING:
    from mconv.convert.model.checkpoint import Checkpoint

DTYPE = LayoutOption(
    "dtype",
    "Type of every tensor. auto keeps the stored type, and converts quantized matrices to bf16.",
    choices=("auto", "f32", "f16", "bf16"),
    default="auto",
)
MAX_SHARD_SIZE = LayoutOption("max_shard_size", "Largest safetensors file.", metavar="SIZE", default="5GB")


def _detect(path: Path) -> bool:
    return (path / CONFIG).is_file()


def _open(path: Path) -> Checkpoint:
    from mconv.convert.layouts.hf.reader import open_hf

    return open_hf(path)


def _plan(checkpoint: Checkpoint, *, dtype: str, max_shard_size: str) -> Planned:
    from mconv.convert.layouts.hf.writer import plan_hf
    from mconv.convert.reporting import parse_bytes
    from mconv.convert.tensors.dtypes import wanted_type

    size = parse_bytes(max_shard_size)
    plan = plan_hf(checkpoint, wanted_type(dtype), size)
    return Planned(plan, plan.main_type, (*checkpoint.notes, *checkpoint.vocabulary().notes))


def _replaces(path: Path) -> bool:
    """Whether a file is part of a checkpoint and would be read with the new one; others, such as notes, are kept."""
    return any(path.match(pattern) for pattern in (CONFIG, INDEX, *TOKENIZER_FILES, *WEIGHT_FILES))


LAYOUT = Layout(
    name="hf",
    title="a Hugging Face folder",
    path_kind="folder",
    detect=_detect,
    open=_open,
    plan=_plan,
    is_fallback=True,
    write_options=(DTYPE, MAX_SHARD_SIZE),
    source_example="Mistral-7B-Instruct-v0.3/",
    target_example="Mistral-7B/",
    replaces=_replaces,
    hub_files=(*WEIGHT_FILES, INDEX, CONFIG, GENERATION, *TOKENIZER_FILES, *CARD_FILES),
)
