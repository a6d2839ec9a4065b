"""A model in several GGUF files, part by part what llama-gguf-split makes of the whole one.

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
        metadata: of the whole file; it goes into the first part.
        typed: tensors in their order.
        alignment: of the whole file, which is that of the first part; the others have no key to say another than the
            format's default.
        max_bytes: the most tensor data in a part. A tensor that is larger has a part to itself.

    Raises:
        UsageError: there would be more parts than the format can count.
        QuantizationError, FormatError: see `lay_out`.
    """
    groups = _group(typed, max_bytes)
    if len(groups) > _MAX_PARTS:
        raise UsageError(f"{len(groups)} parts are more than a split model can have", "split above a larger size")
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
