"""Where a model comes from, as `general.*` and `mconv.*` metadata. The values come from its card and configuration,
never from a clock or a path.

The keys are those of the GGUF specification (ggml docs/gguf.md, "General metadata"). A source revision has no standard
key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from mconv.convert import __version__
from mconv.convert.documents import read_object_if_any, read_text
from mconv.convert.errors import MconvError
from mconv.convert.families import family_named
from mconv.convert.model.metadata import Metadata, Value, ValueType, array, float32, string, uint32
from mconv.convert.model.spec import ModelSpec
from mconv.convert.tensors.nodes import Tensor

_REVISION = re.compile(r"[0-9a-f]{40}")
_SIZE = re.compile(r"(\d+x)?\d+(\.\d+)?[KMBT]", re.IGNORECASE)
_VERSION = re.compile(r"v\d+(\.\d+)*|\d{4}", re.IGNORECASE)
SAMPLING = {
    "temperature": ("temp", float32),
    "top_k": ("top_k", lambda count: Value(ValueType.INT32, int(count))),
    "top_p": ("top_p", float32),
    "min_p": ("min_p", float32),
    "repetition_penalty": ("penalty_repeat", float32),
}
"""Member of generation_config.json to its key, without the prefix `general.sampling.`, and the type of its value."""


def read_provenance(folder: Path, config: Mapping[str, Any], tensors: Iterable[Tensor], spec: ModelSpec) -> Metadata:
    """The provenance of a Hugging Face folder.

    Returns:
        `general.name`, `basename`, `finetune`, `version`, `size_label`, licence, languages, tags and base models from
        the card; `general.sampling.*` from generation_config.json; `mconv.version` and `mconv.source.revision`.
    """
    card = read_card(folder)
    name = _model_name(folder, config, card)
    metadata: Metadata = {"general.type": string("model"), "general.name": string(name)}
    metadata |= {f"general.{key}": string(text) for key, text in name_parts(name).items()}
    metadata["general.size_label"] = string(size_label(tensors, spec))
    metadata |= card_metadata(card)
    metadata |= _sampling(folder)
    metadata["mconv.version"] = string(__version__)
    metadata["mconv.source.architecture"] = string(config["architectures"][0])
    revision = _revision(folder, config)
    if revision:
        metadata["mconv.source.revision"] = string(revision)
    return metadata


def name_parts(name: str) -> dict[str, str]:
    """Base name, fine-tune and version of a model name such as `Mistral-Small-3.2-24B-Instruct-2506`.

    The size label separates the base name from the fine-tune; a last part such as v0.3 or 2506 is the version.
    """
    words = [word for word in re.split(r"[-\s]+", name) if word]
    parts: dict[str, str] = {}
    if len(words) > 1 and _VERSION.fullmatch(words[-1]):
        parts["version"] = words.pop()
    sizes = [place for place, word in enumerate(words) if _SIZE.fullmatch(word)]
    base = words[: sizes[0]] if sizes else words
    tune = words[sizes[0] + 1 :] if sizes else []
    if base:
        parts["basename"] = "-".join(base)
    if tune:
        parts["finetune"] = "-".join(tune)
    return parts


def size_label(tensors: Iterable[Tensor], spec: ModelSpec) -> str:
    """The parameter count in short form: 24B, 1.1B, 8x7B."""
    family = family_named(spec.family)
    total = experts = 0
    for tensor in tensors:
        count = math.prod(tensor.shape)
        role = family.role_of(tensor.name)
        total += count
        experts += count if role is not None and role.is_expert else 0
    if spec.experts:
        return f"{spec.experts}x{_rounded(total - experts + experts // spec.experts)}"
    return _rounded(total)


def _rounded(count: int) -> str:
    """A count with at least two digits: 7.2B, 24B, 1.1B, 350M."""
    scaled, unit = next(
        (count / size, unit)
        for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"), (1, ""))
        if count >= size
    )
    return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"


def _model_name(folder: Path, config: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    for candidate in (card.get("model_name"), config.get("_name_or_path")):
        if isinstance(candidate, str) and candidate.strip("/. "):
            return candidate.rstrip("/").rsplit("/", 1)[-1]
    return folder_name(folder)


def folder_name(folder: Path) -> str:
    """The name of a model, from its folder, or from the repository of a snapshot in the Hub's cache."""
    name = folder.resolve().name
    if _REVISION.fullmatch(name):
        # Paths in the cache are models--org--name/snapshots/<revision>.
        cached = [part for part in folder.resolve().parts if part.startswith("models--")]
        return cached[-1].rsplit("--", 1)[-1] if cached else "model"
    return name or "model"


def _revision(folder: Path, config: Mapping[str, Any]) -> str | None:
    for candidate in (folder.resolve().name, config.get("_commit_hash")):
        if isinstance(candidate, str) and _REVISION.fullmatch(candidate):
            return candidate
    # `hf download --local-dir` records the revision of each downloaded file.
    try:
        lines = (folder / ".cache/huggingface/download/config.json.metadata").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return lines[0] if lines and _REVISION.fullmatch(lines[0]) else None


def read_card(folder: Path) -> dict[str, Any]:
    """The YAML at the start of README.md; empty if it is missing or cannot be read."""
    import yaml

    try:
        lines = read_text(folder / "README.md").splitlines()
    except MconvError:
        return {}
    if not lines or lines[0].rstrip() != "---":
        return {}
    head = list(takewhile(lambda line: line.rstrip() != "---", lines[1:]))
    try:
        # The base loader returns strings only: it does not convert dates and other types.
        card = yaml.load("\n".join(head), yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}


def card_metadata(card: Mapping[str, Any]) -> Metadata:
    """Licence, base models, tags and languages of a card, as `general.*` keys."""
    metadata: Metadata = {}
    for key, name in (("license", "license"), ("license_name", "license.name"), ("license_link", "license.link")):
        if isinstance(card.get(key), str):
            metadata[f"general.{name}"] = string(card[key])
    bases = [base for base in _texts(card.get("base_model")) if re.fullmatch(r"[\w.-]+/[\w.-]+", base)]
    if bases:
        metadata["general.base_model.count"] = uint32(len(bases))
    for place, base in enumerate(bases):
        organization, name = base.split("/")
        metadata[f"general.base_model.{place}.name"] = string(name)
        metadata[f"general.base_model.{place}.organization"] = string(organization)
        metadata[f"general.base_model.{place}.repo_url"] = string(f"https://huggingface.co/{base}")
    for key, name in (("tags", "tags"), ("language", "languages")):
        texts = _texts(card.get(key))
        if texts:
            metadata[f"general.{name}"] = array(ValueType.STRING, texts)
    return metadata


def _sampling(folder: Path) -> Metadata:
    generation = read_object_if_any(folder / "generation_config.json")
    return {
        f"general.sampling.{key}": make(generation[member])
        for member, (key, make) in SAMPLING.items()
        if isinstance(generation.get(member), (int, float)) and math.isfinite(generation[member])
    }


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]
