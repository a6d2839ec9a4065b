"""Capture llama.cpp's log: keep it off the terminal, and use the cause of a failure in error messages."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR, ggml/include/ggml.h


class LlamaLog:
    """The error lines that llama.cpp wrote since the last `clear`.

    Args:
        callback_type: the ctypes function type of llama.cpp's log callback.
    """

    def __init__(self, callback_type: Any) -> None:
        self._errors: list[str] = []
        # llama.cpp keeps a raw pointer to it: it must live as long as this object.
        self.callback = callback_type(self._receive)

    def clear(self) -> None:
        """Forget the lines of earlier calls."""
        self._errors.clear()

    def cause(self) -> str:
        """The cause of a failure: the first error line, since later lines only name the callers that also failed."""
        if not self._errors:
            return "llama.cpp gave no reason"
        # "llama_model_load: error loading model: unknown model architecture": names of functions do not help the user.
        _, _, message = self._errors[0].partition(": ")
        return message.removeprefix("error loading model: ") or self._errors[0]

    def _receive(self, level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
        if level == ERROR_LEVEL:
            self._errors.append(text.decode("utf-8", "replace").strip())


def llama_log() -> LlamaLog:
    """Redirect llama.cpp's log again: other users of llama.cpp in the process may have redirected it."""
    import llama_cpp

    log = _log()
    llama_cpp.llama_log_set(log.callback, ctypes.c_void_p(0))
    return log


@functools.cache
def _log() -> LlamaLog:
    import llama_cpp

    return LlamaLog(llama_cpp.llama_log_callback)
