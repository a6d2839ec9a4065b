"""Retry what may succeed the next time, with growing waits, up to a limit."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from mconv.convert.hub.errors import innermost, reason
from mconv.convert.reporting import note

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How often and for how long something is tried.

    huggingface_hub itself retries most requests several times; these retries come on top.

    Attributes:
        attempts: number of attempts in all.
        first_wait: seconds before the second attempt; each wait is up to twice as long as the one before.
        longest_wait: the longest wait in seconds, unless the Hub asks for more.
        longest_total: seconds of waiting in all, after which it gives up.
        silence: seconds without a byte received or sent, after which a connection counts as lost. The Hub may take a
            minute to commit large files.
    """

    attempts: int = 8
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_total: float = 900.0
    silence: float = 180.0


def persist(action: Callable[[], T], patience: Patience, what: str) -> T:
    """Run an action, and retry it while it fails for a temporary reason.

    Args:
        action: must be safe to repeat after any failure.
        what: what is being done, for the note before each wait.

    Raises:
        Exception: the last failure, or the first one that a retry cannot fix.
    """
    waited = 0.0
    for attempt in range(1, patience.attempts + 1):
        try:
            return action()
        except Exception as error:
            backoff = min(patience.longest_wait, patience.first_wait * 2 ** (attempt - 1))
            # Randomized, so that clients that failed together do not all come back together.
            wait = max(_asked_wait(error), backoff * random.uniform(0.5, 1))
            if not is_passing(error) or attempt == patience.attempts or waited + wait > patience.longest_total:
                raise
            note(f"{what}: {reason(error)}; trying again in {wait:.1f} s")
            time.sleep(wait)
            waited += wait
    raise ValueError("Patience.attempts must be at least 1")


def is_passing(error: BaseException) -> bool:
    """Whether a retry may succeed: too many requests, a server error, a lost connection, a gateway's page instead of an
    answer, an expired address of the storage."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    cause = innermost(error)
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        # Only the storage gets PUT requests, at signed addresses that expire: a retry asks for new ones.
        expired = cause.response.request.method == "PUT" and status in (400, 403)
        return expired or status in (408, 429) or status >= 500
    if isinstance(cause, OfflineModeIsEnabled):
        return False
    return isinstance(cause, (httpx2.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError))


def _asked_wait(error: BaseException) -> float:
    """Seconds that the Hub asks us to wait, in Retry-After or in its rate-limit headers."""
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
