"""How the kernels are compiled, and where the compiled code is kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, extending, njit, types
from numba.misc.appdirs import AppDirs

# The annotations of Numba are narrower than what it accepts and returns.
_njit: Any = njit
_config: Any = config

# Never set a fast-math flag for a kernel: LLVM must keep each float32 operation and its order (see
# docs/explanation/kernels.md).
_OPTIONS = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}

# rows, kind, blocks, blocks a row, importance (or 0), out: addresses and counts, see `kernels.quantize_rows`.
_SIGNATURE = types.void(types.intp, types.intp, types.intp, types.intp, types.intp, types.intp)

jit: Any = _njit(no_cpython_wrapper=True, **_OPTIONS)
"""The decorator of every function that a kernel calls."""

intrinsic: Any = extending.intrinsic
"""The decorator of every function that emits LLVM instructions; typed as it is called, not as it is written."""


def _cache_folder() -> Path | None:
    """A writable folder for compiled kernels; None if there is none.

    Its name contains a digest of all sources here, since Numba itself checks only the file of the kernel and would miss
    a change in shared functions.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    root = os.environ.get("NUMBA_CACHE_DIR") or AppDirs("mconv", appauthor=False).user_cache_dir
    folder = Path(root) / f"kernels-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return None
    return folder


def compile_kernel(
    function: Callable[..., None], signature: Any = _SIGNATURE, fastmath: frozenset[str] = frozenset()
) -> Callable[..., None]:
    """Compile a function, or load it from the cache; if the cache cannot be used, the code is kept in memory only.

    Args:
        signature: of the function; by default that of a kernel.
        fastmath: LLVM's flags for the order of float operations. Kernels must not use any.
    """
    options = {**_OPTIONS, "fastmath": set(fastmath)}
    folder = _cache_folder()
    if folder is not None:
        configured = _config.CACHE_DIR
        _config.CACHE_DIR = str(folder)
        try:
            return _compiled(_njit(cache=True, **options)(function), signature)
        except OSError:  # the disk is full, or the folder was removed
            pass
        finally:
            _config.CACHE_DIR = configured
    return _compiled(_njit(**options)(function), signature)


def _compiled(dispatcher: Any, signature: Any = _SIGNATURE) -> Callable[..., None]:
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher
