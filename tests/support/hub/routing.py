"""Requests, replies, and the table of which function answers what."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from support.hub.storage import Refusal, Repository

if TYPE_CHECKING:
    from support.hub.server import Hub

REPO = r"(?P<repo>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"


@dataclass
class Request:
    """One request.

    Attributes:
        hub: the server.
        query: the last value of each parameter.
        user: whose token came with it, if any.
        body: the body in pieces.
    """

    hub: Hub
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    user: str | None
    body: Iterator[bytes]

    def content(self) -> bytes:
        """The whole body."""
        return b"".join(self.body)

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.content())

    def signed_in(self) -> str:
        """Who asks."""
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        return self.user

    def readable(self, name: str) -> Repository:
        """A repository that the one who asks may see."""
        try:
            repository = self.hub.storage.load(name)
        except Refusal as refusal:
            raise _hidden(self.user) from refusal
        if repository.private and self.user not in self.hub.members:
            raise _hidden(self.user)
        return repository

    def writable(self, name: str) -> str:
        """Who asks, if they may write to a repository."""
        user = self.signed_in()
        self.readable(name)
        if user not in self.hub.members:
            raise Refusal(403, "You don't have the rights to update this repo")
        return user


@dataclass(frozen=True)
class Reply:
    """One answer. A path is sent as the file it names."""

    status: int = 200
    body: bytes | Path = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Route(NamedTuple):
    """Which function answers a method and a path."""

    method: str
    pattern: re.Pattern[str]
    answer: Callable[..., Reply]


ROUTES: list[Route] = []


def route(method: str, pattern: str) -> Callable[[Callable[..., Reply]], Callable[..., Reply]]:
    """Let a function answer; the groups of the pattern, unquoted, are its arguments."""

    def register(answer: Callable[..., Reply]) -> Callable[..., Reply]:
        ROUTES.append(Route(method, re.compile(pattern), answer))
        return answer

    return register


def answer(request: Request) -> Reply:
    """Find the function and call it."""
    for method, pattern, function in ROUTES:
        found = pattern.fullmatch(request.path)
        if found and method == request.method:
            return function(request, **{key: unquote(value) for key, value in found.groupdict().items()})
    raise Refusal(404, f"no such endpoint: {request.method} {request.path}")


def json_reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """An answer in JSON."""
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})


def _hidden(user: str | None) -> Refusal:
    """The Hub does not say whether a repository is private or does not exist."""
    return Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
