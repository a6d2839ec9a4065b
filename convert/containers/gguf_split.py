"""Read a model in several GGUF files, as llama-gguf-split writes them, as one.

Format: llama.cpp tools/gguf-split/gguf-split.cpp and src/llama.cpp `llama_split_path`: NAME-00001-of-0000N.gguf; each
part has `split.no` (from 0), `split.count` and `split.tensors.count`; all other keys are in the first part.
"""

from __future__ import annotations

import re
from pathlib import Path

from mconv.convert.containers.gguf import GgufFile, read_gguf
from mconv.convert.errors import FormatError, SourceError
from mconv.convert.model.metadata import Metadata
from mconv.convert.tensors.nodes import FileTensor

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def read_gguf_model(path: Path) -> GgufFile:
    """The header of a GGUF file, or of all parts of a split one, without the `split.*` keys.

    Args:
        path: the file, or the first part.

    Raises:
        SourceError: a file is missing or shorter than its header claims, or is not the first part.
        FormatError: a file breaks the rules of the format, or the parts do not belong together.
    """
    first = read_gguf(path)
    count = _number(path, first.metadata, "split.count", 1)
    tensors = list(first.tensors)
    if count > 1:
        tensors += _other_parts(path, first, count)
        expected = _number(path, first.metadata, "split.tensors.count", len(tensors))
        if len(tensors) != expected or len({tensor.name for tensor in tensors}) != expected:
            raise FormatError(
                f"{path.name}: the {count} parts hold {len(tensors)} tensors, but the first part claims {expected}",
                "the parts belong to different models; download all of them again",
            )
    metadata = {key: value for key, value in first.metadata.items() if not key.startswith("split.")}
    return GgufFile(metadata, tuple(tensors), first.alignment)


def _other_parts(path: Path, first: GgufFile, count: int) -> list[FileTensor]:
    match = _PART.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise SourceError(
            f"{path.name} is one of {count} parts, but its name does not say which",
            f"rename the parts to NAME-00001-of-{count:05d}.gguf and so on",
        )
    names = [f"{match[1]}-{number + 1:05d}-of-{count:05d}.gguf" for number in range(count)]
    if _number(path, first.metadata, "split.no", 0) != 0 or path.name != names[0]:
        raise SourceError(f"{path.name} is not the first part of {count}", f"give {names[0]}")
    tensors: list[FileTensor] = []
    for number, name in enumerate(names[1:], 1):
        part = path.with_name(name)
        if not part.is_file():
            raise SourceError(f"{name}: no such file in {path.parent}", "download the missing part")
        file = read_gguf(part, number)
        found = (_number(part, file.metadata, "split.no", -1), _number(part, file.metadata, "split.count", -1))
        if found != (number, count):
            raise FormatError(
                f"{name}: its header says part {found[0] + 1} of {found[1]}", "the file was renamed; download it again"
            )
        tensors += file.tensors
    return tensors


def _number(path: Path, metadata: Metadata, key: str, default: int) -> int:
    value = metadata.get(key)
    if value is None:
        return default
    # The format has 16 bits for the number of parts; file names have five digits.
    if isinstance(value.content, bool) or not isinstance(value.content, int) or not 0 <= value.content < 1 << 31:
        raise FormatError(f"{path.name}: {key} is not a valid number", "the file is damaged; download it again")
    return value.content
