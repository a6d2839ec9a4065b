"""The GGUF layout: one file, or one split into parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.layouts.layout import Layout, LayoutOption, Planned

if TYPE_CHECKING:
    from mconv.convert.model.checkpoint import Checkpoint

OUTTYPE = LayoutOption(
    "outtype",
    "Type of the matrices. auto keeps the type of a 16-bit checkpoint and converts a float32 one to f16.",
    choices=("auto", "f32", "f16", "bf16", "q8_0"),
    default="auto",
)


def _detect(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return path.is_file() and file.read(4) == b"GGUF"
    except OSError:
        return False


def _open(path: Path) -> Checkpoint:
    from mconv.convert.layouts.gguf.reader import open_gguf

    return open_gguf(path)


def _plan(checkpoint: Checkpoint, *, outtype: str) -> Planned:
    from mconv.convert.layouts.gguf.writer import (
        model_targets,
        not_carried,
        plan_conversion,
        source_type,
        stays_float32,
    )
    from mconv.convert.tensors.block_types import BlockType

    # Check shapes first: a vocabulary is padded to the size that the configuration claims.
    targets = model_targets(checkpoint)
    notes = [*checkpoint.notes, *not_carried(checkpoint.spec), *checkpoint.vocabulary().notes]
    kind = source_type(targets) if outtype == "auto" else BlockType[outtype.upper()]
    if outtype == "auto" and any(target.rows.dtype == "F32" and not stays_float32(target) for target in targets):
        notes.append(f"float32 matrices are rounded to {kind.name}; --outtype f32 keeps them")
    return Planned(plan_conversion(checkpoint, targets, kind), kind.name, tuple(notes))


LAYOUT = Layout(
    name="gguf",
    title="a GGUF file",
    path_kind="file",
    detect=_detect,
    open=_open,
    plan=_plan,
    is_fallback=True,
    write_options=(OUTTYPE,),
    source_name="SRC.gguf",
    target_name="OUT.gguf",
    source_example="mistral-7b-BF16.gguf",
    target_example="mistral-7b.gguf",
    source_help="For a split file, give the first part. Quantized tensors are decoded. Configuration and tokenizer "
    "are read from the file only.",
)
