"""What stands between the network and the service: size limits, headers, hosts, and errors that tell nothing."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["Guard", "TooLarge", "may_write"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self' data: blob:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
LOOPBACK = {"localhost", "127.0.0.1", "[::1]", "::1"}
log = logging.getLogger(__name__)


class TooLarge(Exception):
    """A request has more bytes than it may."""


class Guard:
    """The outermost layer of the service, in plain ASGI.

    Args:
        app: What is guarded.
        most_bytes: Of a request's body; counted while it is read, whatever its headers claim.
        loopback_only: Answer only to names of this machine, so that no page elsewhere can reach the service through a
            name of its own that points here (DNS rebinding).
        answered: Called with route, status and seconds of every request.
    """

    def __init__(
        self, app: App, *, most_bytes: int, loopback_only: bool, answered: Callable[[str, int, float], None]
    ) -> None:
        self._app, self._most_bytes, self._loopback_only = app, most_bytes, loopback_only
        self._answered = answered

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, read = time.perf_counter(), 0, 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most_bytes:
                raise TooLarge
            return message

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        claimed = headers.get("content-length", "0")
        try:
            if self._loopback_only and _host(headers.get("host", "")) not in LOOPBACK:
                await _refuse(with_headers, 421, "this service answers to names of this machine only")
            elif claimed.isdigit() and int(claimed) > self._most_bytes:
                raise TooLarge
            else:
                await self._app(scope, counted, with_headers)
        except TooLarge:
            if not status:
                await _refuse(with_headers, 413, f"the request is larger than {self._most_bytes:,} bytes")
        except Exception:
            log.exception("a request failed")  # for whoever runs the service; the client learns nothing of its inside
            if not status:
                await _refuse(with_headers, 500, "the server failed to answer; its log says why")
        finally:
            self._answered(getattr(scope.get("route"), "path", "none"), status, time.perf_counter() - begin)


def may_write(authorization: str | None, token: str | None) -> bool:
    """Whether a request's Authorization header carries the token; compared in constant time."""
    given = (authorization or "").removeprefix("Bearer ").strip()
    return token is not None and hmac.compare_digest(given.encode(), token.encode())


def _host(header: str) -> str:
    """Without the port."""
    name, _, port = header.rpartition(":")
    return name if name and port.isdigit() and not (name.startswith("[") and not name.endswith("]")) else header


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
