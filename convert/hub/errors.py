"""Turn exceptions of huggingface_hub into our errors: what went wrong and what to do, with no token in either."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mconv.convert.errors import MconvError, PublishError, SourceError, disk_error

# Access tokens of users and organizations, which begin in lower case (HF_HUB_OFFLINE is not one), and whatever follows
# the word "Bearer".
_SECRETS = re.compile(r"\b(?:hf|api_org)_\w{8,}|(?<=[Bb]earer )\S+")
# Addresses of the storage behind the Hub contain a signature that gives anyone access for a while.
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")


def scrub(text: str) -> str:
    """The text with tokens and signatures removed: `Bearer hf_abc...` becomes `Bearer ***`."""
    from huggingface_hub import get_token

    try:
        token = get_token()
    except Exception:
        # If the token cannot be read, there is none to hide.
        token = None
    if token:
        text = text.replace(token, "***")
    return _QUERY.sub(r"\1", _SECRETS.sub("***", text))


def innermost(error: BaseException) -> BaseException:
    """The Hub's answer, or the reason why there is none, inside an error that wraps it."""
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    # An answer of the Hub is an httpx2.HTTPError too.
    telling = (httpx2.HTTPError, OfflineModeIsEnabled, MconvError)
    return next((cause for cause in _causes(error) if isinstance(cause, telling)), error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def reason(error: BaseException) -> str:
    """Why something failed, in a few words: `the Hub answered 403 (Forbidden)`."""
    from huggingface_hub.errors import HfHubHTTPError

    cause = innermost(error)
    if isinstance(cause, HfHubHTTPError):
        message = scrub(cause.server_message or "")
        return f"the Hub answered {cause.response.status_code}" + (f" ({message[:200]})" if message else "")
    if isinstance(cause, json.JSONDecodeError):
        return "the answer is not JSON, so it does not come from the Hub"
    text = scrub(str(cause)).strip()
    return f"{type(cause).__name__}: {text[:200]}" if text else type(cause).__name__


@contextmanager
def refused(what: str, hint: str, *statuses: int) -> Iterator[None]:
    """Give answers with one of these statuses a message of their own.

    Raises:
        PublishError: `what`, and the reason that the Hub gave.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        if error.response.status_code not in statuses:
            raise
        raise PublishError(f"{what}: {reason(error)}", hint) from error


def explain(error: Exception, repo: str, revision: str | None = None) -> MconvError:
    """Our error for an exception that huggingface_hub raised while working with a repository."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    cause = innermost(error)
    if isinstance(cause, MconvError):
        return cause
    if isinstance(cause, HfHubHTTPError):
        return _explain_answer(cause, repo, revision)
    if isinstance(cause, OfflineModeIsEnabled):
        return SourceError(
            f"{_at(repo, revision)} is not completely in the cache, and HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE, or download it on a machine with a network and copy the cache",
        )
    if isinstance(cause, LocalTokenNotFoundError):
        return PublishError("not signed in to the Hub", "run 'hf auth login', or set HF_TOKEN")
    if isinstance(cause, (httpx2.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError)):
        return PublishError(
            f"{repo}: the Hub cannot be reached ({reason(cause)})",
            "check the network, the proxy and HF_ENDPOINT, then run the same command again; it continues",
        )
    if isinstance(cause, OSError) and cause.errno is not None:
        return disk_error(cause)
    return PublishError(f"{repo}: {reason(error)}", "run the same command again; it continues where it stopped")


def _explain_answer(error: Exception, repo: str, revision: str | None) -> PublishError:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, GatedRepoError):
        return PublishError(
            f"{repo}: access is restricted", f"accept the terms at {page}, then sign in with 'hf auth login'"
        )
    if isinstance(error, RepositoryNotFoundError):
        return PublishError(
            f"{repo}: the Hub has no repository of this name, or you have no access to it",
            "check the name, or the path; for a private repository run 'hf auth login', or set HF_TOKEN",
        )
    if isinstance(error, RevisionNotFoundError):
        return PublishError(
            f"{repo} has no revision {revision or 'main'}",
            f"give a branch, a tag or a full commit id; see {page}/commits",
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if status == 412:
        return PublishError(
            f"{repo}: somebody else committed to the branch at the same time",
            f"look at {page}/commits/main, then run the same command again",
        )
    if isinstance(error, HfHubHTTPError) and error.response.request.url.path.endswith("/validate-yaml"):
        return PublishError(
            f"README.md: the Hub cannot read its metadata: {reason(error)}",
            "correct the lines between the two --- lines",
        )
    hints = {
        401: "the token is invalid or has expired: run 'hf auth login', or set HF_TOKEN",
        403: f"use a token with the necessary permissions for {repo}; see {constants.ENDPOINT}/settings/tokens",
        429: "too many requests: wait a while, then run the same command again; it continues where it stopped",
    }
    default = "run the same command again later; it continues where it stopped" if status >= 500 else f"see {page}"
    return PublishError(f"{repo}: {reason(error)}", hints.get(status, default))


def _at(repo: str, revision: str | None) -> str:
    return f"{repo}@{revision}" if revision else repo
