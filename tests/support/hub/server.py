"""The HTTP server."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, urlsplit

from support.hub import commits, community, downloads, lfs, repositories
from support.hub.faults import Fault, FaultPlan
from support.hub.routing import Reply, Request, answer, json_reply
from support.hub.storage import Refusal, Storage

__all__ = ["Hub", "commits", "community", "downloads", "lfs", "repositories"]

OWNER = "rosa"
OWNER_TOKEN = "hf_" + "Kq3vTestTokenOfTheOwner0123456789"
STRANGER = "otto"
STRANGER_TOKEN = "hf_" + "Zp9wTestTokenOfAStranger012345678"
_PIECE = 1 << 16


class Seen(NamedTuple):
    """A request that came in."""

    method: str
    path: str
    size: int
    range: str


class Hub:
    """A Hub on 127.0.0.1.

    Attributes:
        storage: everything it keeps.
        faults: what is to go wrong.
        seen: every request so far.
        tokens: who a token belongs to.
        members: who may write.
        part_size: LFS objects above this many bytes are uploaded in parts of so many.
        page_size: entries on a page of a listing.
    """

    def __init__(self, root: Path, port: int = 0) -> None:
        self.storage = Storage(root)
        self.faults = FaultPlan()
        self.seen: list[Seen] = []
        self.tokens = {OWNER_TOKEN: OWNER, STRANGER_TOKEN: STRANGER}
        self.members = {OWNER}
        self.part_size = 1 << 18
        self.page_size = 5
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage_endpoint(self) -> str:
        """The same server under another name: files lie on another host than the Hub."""
        return f"http://localhost:{self.port}"

    def writes(self) -> list[Seen]:
        """The requests that were made to change something."""
        return [seen for seen in self.seen if seen.method not in ("GET", "HEAD")]

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that is killed is what some tests are about.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in two writes; waiting for the first to be acknowledged would cost 40 ms.
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def _respond(self) -> None:
        hub = self.server.hub
        path = urlsplit(self.path).path
        size = int(self.headers.get("Content-Length", 0))
        hub.seen.append(Seen(self.command, path, size, self.headers.get("Range", "")))
        fault = hub.faults.take(self.command, path) or Fault("", "call", times=0)
        if fault.kind == "call":
            fault.action()
        if fault.kind == "drop":
            self.rfile.read(size // 2)
            fault.action()
            self._hang_up()
            return
        body = self._body(size, fault)
        if fault.kind == "status":
            said = fault.headers.get("X-Error-Message", "told to fail")
            reply = json_reply({"error": said}, fault.status, fault.headers)
        elif fault.kind == "page":
            reply = Reply(fault.status, b"<html>try again</html>", {"Content-Type": "text/html"})
        else:
            reply = self._reply(hub, path, body)
        # What nobody read would be taken for the next request.
        deque(body, maxlen=0)
        if fault.kind == "call-after":
            fault.action()
        if fault.kind == "lost":
            self._hang_up()
        else:
            self._send(reply, cut=fault.kind == "cut")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _respond

    def _reply(self, hub: Hub, path: str, body: Iterator[bytes]) -> Reply:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        query = dict(parse_qsl(urlsplit(self.path).query))
        try:
            if token and token not in hub.tokens:
                raise Refusal(401, "Invalid credentials in Authorization header")
            # Names of headers are found in any case.
            given = cast(Mapping[str, str], self.headers)
            return answer(Request(hub, self.command, path, query, given, hub.tokens.get(token), body))
        except Refusal as refusal:
            headers = {"X-Error-Message": str(refusal), **({"X-Error-Code": refusal.code} if refusal.code else {})}
            return json_reply({"error": str(refusal)}, refusal.status, headers)

    def _body(self, size: int, fault: Fault) -> Iterator[bytes]:
        done = 0
        while done < size:
            piece = self.rfile.read(min(_PIECE, size - done))
            if not piece:
                raise ConnectionAbortedError("the client is gone")
            if fault.kind == "slow":
                time.sleep(len(piece) / fault.rate)
            if fault.kind == "corrupt" and not done:
                piece = bytes([piece[0] ^ 1]) + piece[1:]
            done += len(piece)
            yield piece

    def _send(self, reply: Reply, *, cut: bool) -> None:
        length = reply.body.stat().st_size if isinstance(reply.body, Path) else len(reply.body)
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(length), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = length // 2 if cut else length
        if isinstance(reply.body, Path):
            with reply.body.open("rb") as file:
                self.connection.sendfile(file, count=sent or None)
        else:
            self.wfile.write(reply.body[:sent])
        if cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
