"""Write a model as several GGUF files, each identical to the part that llama-gguf-split makes.

Format: see `containers/gguf_split.py`. Which tensor goes into which part, and the order of the keys, are those of
llama.cpp tools/gguf-split/gguf-split.cpp with `--split-max-size`.
"""

from __future__ import annotations

from collections.abc import Sequence

from mconv.convert.containers.gguf import DEFAULT_ALIGNMENT, lay_out
from mconv.convert.engine.plan import Plan, TypedTarget, padded, plan_tensor
from mconv.convert.errors import UsageError
from mconv.convert.model.metadata import Metadata, Value, ValueType

# The number of parts has 16 bits in the file.
_MAX_PARTS = (1 << 16) - 1


def part_name(stem: str, number: int, count: int) -> str:
    """The name of a part, counted from 0."""
    return f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"


def plan_parts(metadata: Metadata, typed: Sequence[TypedTarget], alignment: int, max_bytes: int) -> list[Plan]:
    """The plan of each part.

    Args:
        metadata: the metadata of the whole file, stored in the first part.
        typed: the tensors in order.
        alignment: the alignment of the whole file, used by the first part; the other parts have no alignment key and
            use the default of the format.
        max_bytes: the maximum of tensor data per part. A larger tensor gets a separate part.

    Raises:
        UsageError: there would be more parts than the format can count.
        QuantizationError, FormatError: see `lay_out`.
    """
    groups = _group(typed, max_bytes)
    if len(groups) > _MAX_PARTS:
        raise UsageError(f"{len(groups)} parts are more than a split model can have", "choose a larger size per part")
    return [
        lay_out(
            {**({} if number else metadata), **_split_keys(number, len(groups), len(typed))},
            group,
            DEFAULT_ALIGNMENT if number else alignment,
        )
        for number, group in enumerate(groups)
    ]


def _group(typed: Sequence[TypedTarget], max_bytes: int) -> list[list[TypedTarget]]:
    groups: list[list[TypedTarget]] = [[]]
    size = 0
    for each in typed:
        count = padded(plan_tensor(each.target, each.encoding, 0).size, DEFAULT_ALIGNMENT)
        if groups[-1] and size + count > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(each)
        size += count
    return groups


def _split_keys(number: int, count: int, tensors: int) -> Metadata:
    return {
        "split.no": Value(ValueType.UINT16, number),
        "split.tensors.count": Value(ValueType.INT32, tensors),
        "split.count": Value(ValueType.UINT16, count),
    }
