"""The GGUF layout as a source: keys back to a spec, tensors back to their canonical names and order."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from mconv.convert.containers.gguf import GgufFile
from mconv.convert.containers.gguf_split import read_gguf_model
from mconv.convert.errors import FormatError, MappingError
from mconv.convert.families import family_of_gguf
from mconv.convert.families.table import canonical_tensors
from mconv.convert.layouts.gguf.writer import SLIDING_WINDOW, rope_factors
from mconv.convert.model.checkpoint import Checkpoint
from mconv.convert.model.metadata import Metadata, ValueType
from mconv.convert.model.spec import ModelSpec, Rope
from mconv.convert.tensors.nodes import FileTensor
from mconv.convert.tokenizer import Vocabulary

_ROPE_FACTORS = "rope_freqs.weight"
_TOKENIZER_JSON = "tokenizer.huggingface.json"
# What the file says of itself and not of the model.
_OF_THE_FILE = frozenset(
    {"general.architecture", "general.file_type", "general.quantization_version", "general.alignment"}
)


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file, or the first part of a split one. Only headers are read.

    Quantized tensors stay as they are; whoever reads their rows decodes them.

    Raises:
        SourceError: a file is missing or truncated.
        FormatError: a file breaks its format's rules, or lacks a key.
        MappingError: the architecture is not supported, or a tensor has no place in its family.
    """
    file = read_gguf_model(path)
    spec = spec_of(path.name, file)
    family = family_of_gguf(spec.gguf_architecture, spec.experts > 0)
    tensors = canonical_tensors(family, spec, weights_of(file))

    @cache
    def vocabulary() -> Vocabulary:
        from mconv.convert.tokenizer.from_gguf import vocabulary_of_metadata

        return vocabulary_of_metadata(path.name, file.metadata, spec.vocab)

    return Checkpoint(
        layout="gguf",
        path=path,
        spec=spec,
        tensors=tensors,
        vocabulary=vocabulary,
        files=(path, *{tensor.file.path for tensor in file.tensors}),
        sidecars=lambda: _carried_tokenizer(path.name, file.metadata),
        float32_by_layout=True,
        provenance={
            key: value
            for key, value in file.metadata.items()
            if key.startswith(("general.", "mconv.")) and key not in _OF_THE_FILE
        },
    )


def _carried_tokenizer(name: str, metadata: Metadata) -> dict[str, bytes]:
    """The tokenizer.json that some writers put into the file whole (ggml docs/gguf.md, `tokenizer.huggingface.json`).

    Raises:
        FormatError: it is no JSON object.
    """
    value = metadata.get(_TOKENIZER_JSON)
    if value is None:
        return {}
    try:
        whole = isinstance(json.loads(value.content), dict)
    except (ValueError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise FormatError(f"{name}: {_TOKENIZER_JSON} holds no JSON object", "the file is damaged; get it again")
    return {"tokenizer.json": value.content.encode()}


def weights_of(file: GgufFile) -> dict[str, FileTensor]:
    """The tensors of a file that are weights, by their names there."""
    return {tensor.name: tensor for tensor in file.tensors if tensor.name != _ROPE_FACTORS}


def spec_of(name: str, file: GgufFile) -> ModelSpec:
    """The hyperparameters of a file.

    Args:
        name: of the file, for messages.

    Raises:
        FormatError: a key is missing, or its value makes no sense.
        MappingError: the architecture is not supported, or keys contradict each other.
    """
    spec = _read_keys(name, file.metadata, weights_of(file))
    factors = next((tensor for tensor in file.tensors if tensor.name == _ROPE_FACTORS), None)
    return spec if factors is None else replace(spec, rope=_llama3_rope(name, spec, factors))


def _read_keys(name: str, metadata: Metadata, stored: dict[str, FileTensor]) -> ModelSpec:
    """The inverse of `layouts.gguf.writer.model_metadata`, with llama.cpp's defaults (src/llama-model.cpp)."""
    architecture = metadata.get("general.architecture")
    if architecture is None or not isinstance(architecture.content, str):
        raise FormatError(f"{name}: general.architecture is missing", "the file holds no model; give one that does")
    keys = _Keys(name, metadata, f"{architecture.content}.")
    if "general.type" in metadata and metadata["general.type"].content not in ("model", None):
        raise MappingError(
            f"{name}: holds a {metadata['general.type'].content}, not a model", "give the file of the language model"
        )
    experts = keys.count("expert_count", 0)
    family = family_of_gguf(architecture.content, experts > 0)
    hidden, heads = keys.count("embedding_length"), keys.count("attention.head_count")
    head_dim = keys.count("attention.key_length", hidden // max(heads, 1))
    if min(hidden, heads, head_dim) < 1:
        raise FormatError(f"{name}: a model without heads or of no width", "the file is damaged; get it again")
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.count(key, head_dim) != head_dim:
            raise MappingError(
                f"{name}: {keys.prefix}{key} is {keys.count(key)}, the heads have {head_dim}",
                "models with heads of two lengths, or that rotate a part of each, are not supported",
            )
    embedding = stored.get("token_embd.weight")
    scale = keys.number("attention.temperature_scale")
    return ModelSpec(
        family=family.name,
        gguf_architecture=architecture.content,
        layers=keys.count("block_count"),
        hidden=hidden,
        ffn=keys.count("feed_forward_length"),
        heads=heads,
        kv_heads=keys.count("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab=embedding.shape[0] if embedding is not None else keys.count("vocab_size"),
        context=keys.count("context_length"),
        rms_norm_eps=keys.required_number("attention.layer_norm_rms_epsilon"),
        rope=_read_rope(keys),
        states_head_dim="attention.key_length" in keys,
        tied="output.weight" not in stored,
        experts=experts,
        experts_per_token=keys.count("expert_used_count") if experts else 0,
        sliding_window=_Keys(name, metadata, "").count(SLIDING_WINDOW, 0) or None,
        attention_temperature_scale=scale,
        attention_bias="blk.0.attn_q.bias" in stored,
        mlp_bias="blk.0.ffn_gate.bias" in stored,
    )


def _read_rope(keys: _Keys) -> Rope:
    theta = keys.number("rope.freq_base") or 10000.0
    kind = keys.text("rope.scaling.type") or "none"
    if kind == "none":
        return Rope(theta)
    if kind not in ("linear", "yarn"):
        raise MappingError(f"{keys.name}: rope scaling {kind!r} is not supported", "supported: none, linear, yarn")
    factor = keys.required_number("rope.scaling.factor")
    if kind == "linear":
        return Rope(theta, kind, factor)
    return Rope(
        theta,
        kind,
        factor,
        original_context=keys.count("rope.scaling.original_context_length"),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast"),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow"),
        attention_factor=keys.number("rope.scaling.yarn_attn_factor"),
        extrapolation_factor=keys.number("rope.scaling.yarn_ext_factor"),
        mscale_all_dim=keys.number("rope.scaling.yarn_log_multiplier"),
    )


def _llama3_rope(name: str, spec: ModelSpec, stored: FileTensor) -> Rope:
    """The parameters that the table of frequency divisors was computed from.

    The largest divisor is the factor. The band of wavelengths that is blended begins and ends at the original context
    divided by 4 and by 1 in every model published so; the context is found by trying powers of two.
    """
    if stored.dtype != "F32" or stored.shape != (spec.head_dim // 2,):
        raise FormatError(f"{name}: {_ROPE_FACTORS} is not one float32 a pair of values", "get the file again")
    factors = stored.read(0, spec.head_dim // 2)[:, 0]
    for exponent in range(8, 24):
        rope = Rope(spec.rope.theta, "llama3", _decimal(factors.max()), original_context=1 << exponent)
        computed = rope_factors(replace(spec, rope=rope))
        if computed is not None and np.allclose(computed, factors, rtol=1e-5, atol=0):
            return rope
    raise MappingError(
        f"{name}: {_ROPE_FACTORS} follows from no known parameters of Llama 3's scaling",
        "models with other tables of rotary frequencies are not supported",
    )


def _decimal(value: float) -> float:
    """The shortest decimal number that is this float32: 1e-05, where the file has 9.999999747378752e-06."""
    return float(str(np.float32(value)))


class _Keys:
    """The keys of one architecture, none of which is trusted."""

    def __init__(self, name: str, metadata: Metadata, prefix: str) -> None:
        self.name = name
        self.prefix = prefix
        self._metadata = metadata

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self._metadata

    def count(self, key: str, default: int | None = None) -> int:
        """A number of something, from 0 on. A list of one number a layer has to repeat a single one."""
        value = self._metadata.get(self.prefix + key)
        content = value.content if value else default
        if isinstance(content, list) and content and all(item == content[0] for item in content):
            content = content[0]
        if isinstance(content, list):
            raise MappingError(
                f"{self.name}: {self.prefix}{key} differs from layer to layer", "such models are not supported"
            )
        if isinstance(content, bool) or not isinstance(content, int) or not 0 <= content < 1 << 31:
            raise self._bad(key, content)
        return content

    def number(self, key: str) -> float | None:
        """A finite number; None where it is absent."""
        value = self._metadata.get(self.prefix + key)
        if value is None:
            return None
        if value.type not in (ValueType.FLOAT32, ValueType.FLOAT64) or not np.isfinite(value.content):
            raise self._bad(key, value.content)
        return _decimal(value.content)

    def required_number(self, key: str) -> float:
        """A finite number."""
        found = self.number(key)
        if found is None:
            raise self._bad(key, None)
        return found

    def text(self, key: str) -> str | None:
        """A text; None where it is absent."""
        value = self._metadata.get(self.prefix + key)
        if value is not None and not isinstance(value.content, str):
            raise self._bad(key, value.content)
        return value.content if value else None

    def _bad(self, key: str, content: object) -> FormatError:
        found = "is missing" if content is None else f"is {str(content)[:40]!r}"
        return FormatError(f"{self.name}: {self.prefix}{key} {found}", "the file is damaged; get it again")
