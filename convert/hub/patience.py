"""Trying again what may go well the next time, with growing waits, and not for ever."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from mconv.convert.cli.console import note
from mconv.convert.hub.errors import innermost, reason

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How often and how long something is tried.

    huggingface_hub tries most requests several times by itself; this comes on top.

    Attributes:
        attempts: how often in all.
        first_wait: seconds before the second; each wait is up to twice as long as the one before.
        longest_wait: seconds that no wait exceeds, unless the Hub asks for more.
        longest_total: seconds spent waiting after which nothing is tried again.
        silence: seconds without a byte from the far side, or without its taking one, after which a connection is lost.
            A commit of large files is known to take the Hub a minute.
    """

    attempts: int = 8
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_total: float = 900.0
    silence: float = 180.0


def persist(action: Callable[[], T], patience: Patience, what: str) -> T:
    """The result of an action that is tried again while it fails for a passing reason.

    Args:
        action: has to leave the same behind when it is done a second time after a failure of whatever kind.
        what: named in the note of each wait.

    Raises:
        Exception: the last failure, or the first that waiting does not help against.
    """
    waited = 0.0
    for attempt in range(1, patience.attempts + 1):
        try:
            return action()
        except Exception as error:
            backoff = min(patience.longest_wait, patience.first_wait * 2 ** (attempt - 1))
            # Spread, so that the many who failed together do not come back together.
            wait = max(_asked_wait(error), backoff * random.uniform(0.5, 1))
            if not is_passing(error) or attempt == patience.attempts or waited + wait > patience.longest_total:
                raise
            note(f"note: {what}: {reason(error)}; trying again in {wait:.1f} s")
            time.sleep(wait)
            waited += wait
    raise ValueError("patience of no attempt")


def is_passing(error: BaseException) -> bool:
    """Whether the same may go well later: too many requests, a failure over there, a connection lost, a page of some
    gateway in place of an answer, an address of the storage that is not good any more."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    cause = innermost(error)
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        # Only the storage is put to, by signed addresses that last for a while: trying again asks for new ones.
        expired = cause.response.request.method == "PUT" and status in (400, 403)
        return expired or status in (408, 429) or status >= 500
    if isinstance(cause, OfflineModeIsEnabled):
        return False
    return isinstance(cause, (httpx2.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError))


def _asked_wait(error: BaseException) -> float:
    """Seconds that the Hub asks to wait, by Retry-After or by its rate-limit headers."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers

    cause = innermost(error)
    if not isinstance(cause, HfHubHTTPError):
        return 0.0
    text = cause.response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        limit = parse_ratelimit_headers(cause.response.headers)
        return float(limit.reset_in_seconds) if limit and not limit.remaining else 0.0
