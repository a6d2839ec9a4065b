"""huggingface_hub, set up for a command line: silent without a terminal, and never waiting forever."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mconv.convert.hub.patience import Patience
from mconv.convert.reporting import warn

if TYPE_CHECKING:
    import httpx2


@contextmanager
def hub_client(patience: Patience) -> Iterator[None]:
    """Within this block, progress bars need a terminal, only errors are logged, and warnings become notes.

    Args:
        patience: how long a connection may be silent.
    """
    from huggingface_hub.utils import disable_progress_bars, logging

    _bound_silence(patience.silence)
    verbosity = logging.get_verbosity()
    with ExitStack() as stack:
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        if not sys.stderr.isatty() and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
            stack.enter_context(disable_progress_bars())
        if verbosity == logging.WARNING:
            # Its warnings are about retries, and contain signed addresses.
            logging.set_verbosity_error()
            stack.callback(logging.set_verbosity, verbosity)
        try:
            yield
        finally:
            for warning in caught:
                warn(f"{warning.message}")


@dataclass(frozen=True)
class _Bound:
    """Called with each request. Most methods of huggingface_hub set no time limit, and accept none as an argument."""

    seconds: float

    def __call__(self, request: httpx2.Request) -> None:
        limits = request.extensions.setdefault("timeout", {})
        for kind in ("connect", "read", "write"):
            limits[kind] = limits.get(kind) or self.seconds


def _bound_silence(seconds: float) -> None:
    import httpx2
    from huggingface_hub import get_session, set_client_factory

    hooks = [hook for hook in get_session().event_hooks["request"] if not isinstance(hook, _Bound)]
    hooks.append(_Bound(seconds))
    set_client_factory(lambda: httpx2.Client(event_hooks={"request": hooks}, follow_redirects=True, timeout=None))
