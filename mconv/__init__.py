"""mconv: checkpoints of open-weight models, converted, quantized, proved and released."""

from mconv.convert import __version__

__all__ = ["__version__"]
