"""The versions of the software that makes and measures a release."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from mconv.convert import __version__
from mconv.quantize import ggml

_QUANTIZING = ("llama-cpp-python", "gguf", "numpy", "numba")
_MEASURING = ("torch", "transformers", "tokenizers", "sentencepiece", "mistral-common", "matplotlib")


def quantizing_versions() -> dict[str, str]:
    """The versions that the bytes of the weights may depend on, by name."""
    return {"mconv": __version__, "ggml": ggml.version(), **_versions(_QUANTIZING)}


def measuring_versions() -> dict[str, str]:
    """The same, and the versions that the measurements may depend on."""
    return {**quantizing_versions(), **_versions(_MEASURING)}


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            # Some are installed only with an extra.
            continue
    return found
