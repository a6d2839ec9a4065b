"""Read a spec from the keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mconv.convert.containers.gguf import GgufFile
from mconv.convert.errors import FormatError, MappingError
from mconv.convert.layouts.gguf.architecture import family_of, full_key
from mconv.convert.layouts.gguf.hyperparameters import SCALINGS, rope_factors
from mconv.convert.layouts.gguf.names import name_of
from mconv.convert.model.fields import (
    ATTENTION_BIAS,
    ATTENTION_TEMPERATURE_SCALE,
    CONTEXT,
    EXPERTS,
    EXPERTS_PER_TOKEN,
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LARGEST_COUNT,
    LAYERS,
    MLP_BIAS,
    RMS_NORM_EPS,
    ROPE_FIELDS,
    ROPE_THETA,
    ROPE_TYPE,
    SLIDING_WINDOW,
    STATES_HEAD_DIM,
    TIED,
    VOCAB,
    Field,
    Kind,
    Words,
    make_spec,
)
from mconv.convert.model.metadata import Metadata, ValueType
from mconv.convert.model.roles import Role
from mconv.convert.model.spec import ModelSpec, Rope
from mconv.convert.tensors.nodes import FileTensor

_ROPE_FACTORS = name_of(Role.ROPE_FACTORS)
_THETA = 10000.0  # llama.cpp's default


def weights_of(file: GgufFile) -> dict[str, FileTensor]:
    """The tensors of a file that are weights, by their names in the file."""
    return {tensor.name: tensor for tensor in file.tensors if tensor.name != _ROPE_FACTORS}


def spec_of(name: str, file: GgufFile) -> ModelSpec:
    """The hyperparameters of a file.

    Args:
        name: the name of the file, for messages.

    Raises:
        FormatError: a key is missing, or its value is not valid.
        MappingError: the architecture is not supported, or keys contradict each other.
    """
    spec = _read_keys(name, file.metadata, weights_of(file))
    factors = next((tensor for tensor in file.tensors if tensor.name == _ROPE_FACTORS), None)
    return spec if factors is None else replace(spec, rope=_llama3_rope(name, spec, factors))


def _read_keys(name: str, metadata: Metadata, stored: Mapping[str, FileTensor]) -> ModelSpec:
    """The inverse of `layouts.gguf.writer.model_metadata`, with llama.cpp's defaults (src/llama-model.cpp)."""
    architecture = metadata.get("general.architecture")
    if architecture is None or not isinstance(architecture.content, str):
        raise FormatError(
            f"{name}: general.architecture is missing", "the file does not contain a model; give one that does"
        )
    keys = _Keys(name, metadata, architecture.content)
    if "general.type" in metadata and metadata["general.type"].content not in ("model", None):
        raise MappingError(
            f"{name} contains a {metadata['general.type'].content}, not a model", "give the file of the language model"
        )
    known: dict[str, Any] = {}

    def read(*fields: Field) -> None:
        for field in fields:
            known[field.name] = keys.read(field, known)

    read(EXPERTS)
    family = family_of(architecture.content, known["experts"] > 0)
    read(HIDDEN, HEADS, HEAD_DIM)
    if min(known["hidden"], known["heads"], known["head_dim"]) < 1:
        raise FormatError(
            f"{name}: the number of heads or the hidden size is zero", "the file is damaged; download it again"
        )
    keys.require_same(HEAD_DIM, known["head_dim"])
    read(LAYERS, FFN, KV_HEADS, CONTEXT, RMS_NORM_EPS, ATTENTION_TEMPERATURE_SCALE, SLIDING_WINDOW)
    if known["experts"]:
        read(EXPERTS_PER_TOKEN)
    # A window of zero tokens means no window.
    known[SLIDING_WINDOW.name] = known[SLIDING_WINDOW.name] or None
    embedding = stored.get(name_of(Role.TOKEN_EMBEDDING))
    known[VOCAB.name] = keys.read(VOCAB, known) if embedding is None else embedding.shape[0]
    # These follow from the tensors in the file.
    known[STATES_HEAD_DIM.name] = keys.has(HEAD_DIM)
    known[TIED.name] = name_of(Role.OUTPUT) not in stored
    known[ATTENTION_BIAS.name] = name_of(Role.ATTENTION_Q_BIAS, 0) in stored
    known[MLP_BIAS.name] = name_of(Role.FFN_GATE_BIAS, 0) in stored
    return make_spec(Words(name, keys.spell), family=family.name, rope=_read_rope(keys), **known)


def _read_rope(keys: _Keys) -> Rope:
    theta = keys.find(ROPE_THETA) or _THETA
    kind = keys.find(ROPE_TYPE) or "none"
    if kind == "none":
        return Rope(theta)
    if kind not in SCALINGS:
        supported = ", ".join(("none", *SCALINGS))
        raise MappingError(f"{keys.name}: rope scaling {kind!r} is not supported", f"supported: {supported}")
    of_kind = [field for field in ROPE_FIELDS if kind in field.scalings]
    return Rope(theta, kind, **{field.name.removeprefix("rope."): keys.read(field, {}) for field in of_kind})


def _llama3_rope(name: str, spec: ModelSpec, stored: FileTensor) -> Rope:
    """The parameters that the table of frequency divisors was computed from.

    The largest divisor is the factor. In every model published so far, the band of interpolated wavelengths begins and
    ends at the original context divided by 4 and by 1; the context is found by trying powers of two.
    """
    if stored.dtype != "F32" or stored.shape != (spec.head_dim // 2,):
        raise FormatError(
            f"{name}: {_ROPE_FACTORS} does not have one float32 per pair of values",
            "the file is damaged; download it again",
        )
    factors = stored.read(0, spec.head_dim // 2)[:, 0]
    for exponent in range(8, 24):
        rope = Rope(spec.rope.theta, "llama3", _decimal(factors.max()), original_context=1 << exponent)
        computed = rope_factors(replace(spec, rope=rope))
        if computed is not None and np.allclose(computed, factors, rtol=1e-5, atol=0):
            return rope
    raise MappingError(
        f"{name}: {_ROPE_FACTORS} does not match any known parameters of Llama 3's scaling",
        "models with other tables of rotary frequencies are not supported",
    )


def _decimal(value: float) -> float:
    """The shortest decimal number that rounds to this float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


class _Keys:
    """The keys of one architecture; all values are untrusted."""

    def __init__(self, name: str, metadata: Metadata, architecture: str) -> None:
        self.name = name
        self._metadata = metadata
        self._architecture = architecture

    def spell(self, field: Field) -> str:
        """The key of a field in the file."""
        return full_key(field.gguf[0], self._architecture) if field.gguf else field.name

    def has(self, field: Field) -> bool:
        """Whether the file has the field."""
        return self.spell(field) in self._metadata

    def read(self, field: Field, known: Mapping[str, Any]) -> Any:
        """The value of a field, or its default.

        Raises:
            FormatError: it is missing, or not a valid value.
            MappingError: it differs from layer to layer.
        """
        found = self.find(field)
        if found is not None:
            return found
        if field.default is None:
            raise self._bad(self.spell(field), None)
        return field.default(known)

    def find(self, field: Field) -> Any:
        """The value of a field; None if the file does not have it.

        Raises:
            FormatError, MappingError: see `read`.
        """
        return self._find(self.spell(field), field.kind)

    def require_same(self, field: Field, value: int) -> None:
        """Reject a file whose additional keys for a field have another value.

        Raises:
            MappingError: one of them has another value.
        """
        for key in field.gguf[1:]:
            name = full_key(key, self._architecture)
            found = self._find(name, field.kind)
            if found not in (None, value):
                raise MappingError(
                    f"{self.name}: {name} is {found}, but the heads have {value}",
                    "models with heads of two lengths, or that rotate only part of each head, are not supported",
                )

    def _find(self, key: str, kind: Kind) -> Any:
        value = self._metadata.get(key)
        if value is None:
            return None
        if kind is Kind.COUNT:
            return self._count(key, value.content)
        if kind is Kind.TEXT:
            if not isinstance(value.content, str):
                raise self._bad(key, value.content)
            return value.content
        if value.type not in (ValueType.FLOAT32, ValueType.FLOAT64) or not np.isfinite(value.content):
            raise self._bad(key, value.content)
        return _decimal(value.content)

    def _count(self, key: str, content: Any) -> int:
        """A count, 0 or more. A list with one number per layer must repeat the same number."""
        if isinstance(content, list) and content and all(item == content[0] for item in content):
            content = content[0]
        if isinstance(content, list):
            raise MappingError(f"{self.name}: {key} differs from layer to layer", "such models are not supported")
        if isinstance(content, bool) or not isinstance(content, int) or not 0 <= content <= LARGEST_COUNT:
            raise self._bad(key, content)
        return content

    def _bad(self, key: str, content: object) -> FormatError:
        found = "is missing" if content is None else f"is {str(content)[:40]!r}"
        return FormatError(f"{self.name}: {key} {found}", "the file is damaged; download it again")
