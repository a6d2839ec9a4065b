"""The files beside the weights of a Hugging Face folder: configuration, tokenizer, generation settings, card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mconv.convert.errors import MappingError
from mconv.convert.families import family_named
from mconv.convert.layouts.hf.names import CARD_FILES, CONFIG, GENERATION, TOKENIZER_FILES
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.model.metadata import Metadata
from mconv.convert.model.provenance import SAMPLING
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tokenizer import Vocabulary
from mconv.convert.tokenizer.hf_files import tokenizer_files

_TORCH_NAMES = {BlockType.F32: "float32", BlockType.F16: "float16", BlockType.BF16: "bfloat16"}


def find_sidecars(*folders: Path, card: bool = True) -> dict[str, Path]:
    """Every sidecar file by its path within its folder, from the first folder that has it.

    Args:
        card: whether to include the card and the licence of the model.
    """
    patterns = (CONFIG, GENERATION, *TOKENIZER_FILES, *(CARD_FILES if card else ()))
    found: dict[str, Path] = {}
    for folder in dict.fromkeys(folders):
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file()):
            found.setdefault(path.relative_to(folder).as_posix(), path)
    return found


def read_sidecars(sidecars: Mapping[str, Path]) -> dict[str, bytes]:
    """The content of every sidecar file."""
    return {name: path.read_bytes() for name, path in sidecars.items()}


def sidecar_files(checkpoint: Checkpoint, kind: BlockType) -> dict[str, bytes]:
    """The files to write beside the weights: those of the source if it has them, otherwise made from the spec.

    Args:
        kind: the type of the matrices.

    Returns:
        Path to content; config.json, which makes a folder a checkpoint, comes last.

    Raises:
        MappingError: transformers has no configuration for such a model.
        SourceError: the tokenizer cannot be written as files.
    """
    carried = dict(checkpoint.sidecars())
    original = carried.pop(CONFIG, None)
    vocabulary = checkpoint.vocabulary()
    files = dict(carried)
    if not any(Path(name).match(pattern) for name in carried for pattern in TOKENIZER_FILES):
        files |= tokenizer_files(vocabulary)
    files.setdefault(GENERATION, encode_json(_generation_config(vocabulary, checkpoint.provenance)))
    files[CONFIG] = encode_json(_config(checkpoint, vocabulary, kind, json.loads(original) if original else None))
    return files


def encode_json(content: Mapping[str, Any]) -> bytes:
    """A JSON object as the content of a file."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _config(
    checkpoint: Checkpoint, vocabulary: Vocabulary, kind: BlockType, original: Mapping[str, Any] | None
) -> dict[str, Any]:
    spec = checkpoint.spec
    write = family_named(spec.family).write_config
    if write is None:
        raise MappingError(f"no configuration can be written for the {spec.family} family", "convert to another layout")
    config = write(spec, _origin(checkpoint.provenance))
    # A model without its vision part has another class than its original configuration says.
    if original and original.get("architectures") == config["architectures"]:
        # A run may have started from the configuration of quantized weights; these weights are not quantized.
        kept = {key: value for key, value in original.items() if key != "quantization_config"}
        return {**kept, "torch_dtype" if "torch_dtype" in kept else "dtype": _TORCH_NAMES[kind]}
    # transformers assumes default ids if these are missing.
    config |= {f"{role}_token_id": vocabulary.special_ids.get(role) for role in ("bos", "eos", "pad")}
    return dict(sorted({**config, "dtype": _TORCH_NAMES[kind]}.items()))


def _origin(provenance: Metadata) -> str:
    """The transformers class that the model comes from, according to its provenance; empty if unknown."""
    known = provenance.get("mconv.source.architecture")
    if known is not None:
        return str(known.content)
    named = (provenance.get(f"general.{key}") for key in ("basename", "name"))
    is_mistral = any("stral" in str(value.content).lower() for value in named if value is not None)
    return "MistralForCausalLM" if is_mistral else ""


def _generation_config(vocabulary: Vocabulary, provenance: Metadata) -> dict[str, Any]:
    ids = vocabulary.special_ids
    config: dict[str, Any] = {f"{role}_token_id": ids[role] for role in ("bos", "eos", "pad") if role in ids}
    if "eot" in ids and ids["eot"] != ids.get("eos"):
        config["eos_token_id"] = sorted({ids["eot"], ids.get("eos", ids["eot"])})
    for name, (key, _) in SAMPLING.items():
        value = provenance.get(f"general.sampling.{key}")
        if value is not None and isinstance(value.content, (int, float)) and math.isfinite(value.content):
            config[name] = round(value.content, 6)
    if any(name in config for name in ("temperature", "top_k", "top_p", "min_p")):
        config["do_sample"] = True
    return config
