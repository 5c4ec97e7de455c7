"""What stands between the network and the service: size limits, headers, hosts, and errors that tell nothing."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from fastapi import HTTPException
from starlette.requests import ClientDisconnect

__all__ = ["HAS_GONE", "Guard", "Refused", "may_write"]

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
OPEN = {"/search"}
"""Paths whose bodies are read before anything is known of who sends them."""
LOOPBACK = {"localhost", "127.0.0.1", "[::1]", "::1"}
MAX_HELD = 64_000_000
SMALL = 64_000
"""Bytes of a body that is read at once, and however much is held already."""
BYTES_PER_SECOND = 20_000_000
"""Pace of all larger bodies together: reading them must leave the time to answer others."""
REFUSALS_PER_SECOND, REFUSED_AT_ONCE, LONGEST_REFUSAL = 50, 200, 1.0
"""Requests are refused so often, after some at once; none waits longer than so many seconds for it.

Who sends nonsense as fast as it is refused would have most of the service's time.
"""
REFUSALS = {400, 401, 403, 413, 415, 421, 422}
"""Statuses. What is not found is no fault of who follows a link, and who is asked to come back has waited already."""
HAS_GONE = 499
"""Status, for the figures alone, of a request whose client went away; nginx counts them so."""
log = logging.getLogger(__name__)


class Refused(HTTPException):
    """A request is not read any further."""


class RateLimiter:
    """Keeps all who wait for it together below a rate.

    Args:
        per_second: What may pass in a second.
        at_once: What may pass before that, after a pause.
        longest: Seconds that anybody waits.
    """

    def __init__(self, per_second: float, *, at_once: float = 0, longest: float = float("inf")) -> None:
        self._per_second, self._saved, self._longest = per_second, at_once / per_second, longest
        self._until = 0.0

    async def wait(self, amount: float = 1) -> None:
        """Wait until it is the turn of so much."""
        now = time.perf_counter()
        self._until = min(max(now - self._saved, self._until) + amount / self._per_second, now + self._longest)
        if self._until - now > 0.01:
            await asyncio.sleep(self._until - now)


class Guard:
    """The outermost layer of the service, in plain ASGI.

    Bodies are counted while they are read, whatever their headers claim. What is asked in a small body reaches the
    application when it is there. HEAD is answered like GET, without a body.
    Paths of items stay percent-encoded: a slash in an id is ``%2F``, and no verb begins behind it.

    Args:
        app: What is guarded.
        most_bytes: Limit of a request's body.
        most_held: Bytes of all bodies together; whoever sends more than a small one is asked to come back then.
        loopback_only: Answer only to names of this machine, so that no page elsewhere can reach the service through a
            name of its own that points here (DNS rebinding).
        answered: Called with route, status and seconds of every request.
    """

    def __init__(
        self,
        app: App,
        *,
        most_bytes: int,
        most_held: int = MAX_HELD,
        loopback_only: bool,
        answered: Callable[[str, int, float], None],
    ) -> None:
        self._app, self._most_bytes, self._loopback_only = app, most_bytes, loopback_only
        self._most_held, self._held = most_held, 0
        self._reading = RateLimiter(BYTES_PER_SECOND)
        self._refusing = RateLimiter(REFUSALS_PER_SECOND, at_once=REFUSED_AT_ONCE, longest=LONGEST_REFUSAL)
        self._answered = answered

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, read = time.perf_counter(), 0, 0
        is_head, scope = scope["method"] == "HEAD", _routed(scope)

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            size = len(message.get("body", b""))
            read += size
            self._held += size
            if read > self._most_bytes:
                raise self._too_large()
            if read > SMALL:
                if self._held > self._most_held:
                    raise Refused(429, "too much is sent at once; send it again in a moment", {"retry-after": "1"})
                await self._reading.wait(size)
            return message

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status in REFUSALS:
                    await self._refusing.wait()
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            elif is_head:
                message["body"] = b""
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        claimed = headers.get("content-length", "0")
        try:
            if self._loopback_only and _host(headers.get("host", "")) not in LOOPBACK:
                raise Refused(421, "this service answers to names of this machine only")
            if claimed.isdigit() and int(claimed) > self._most_bytes:
                raise self._too_large()
            if scope["path"] in OPEN:
                await self._app(scope, await _begun(counted), with_headers)
            else:
                await self._app(scope, counted, with_headers)
        except Refused as error:
            if not status:
                await _refuse(with_headers, error.status_code, error.detail)
        except ClientDisconnect:
            status = status or HAS_GONE
        except Exception:
            log.exception("a request failed")  # for whoever runs the service; the client learns nothing of its inside
            if not status:
                await _refuse(with_headers, 500, "the server failed to answer; its log says why")
        finally:
            self._held -= read
            self._answered(getattr(scope.get("route"), "path", "none"), status, time.perf_counter() - begin)

    def _too_large(self) -> Refused:
        return Refused(413, f"the request is larger than {self._most_bytes:,} bytes")


def may_write(authorization: str | None, token: str | None) -> bool:
    """Whether a request's Authorization header carries the token; compared in constant time."""
    given = (authorization or "").removeprefix("Bearer ").strip()
    return token is not None and hmac.compare_digest(given.encode(), token.encode())


async def _begun(receive: Receive) -> Receive:
    """What gives a body, of which as much as a small one has come.

    Raises:
        ClientDisconnect: It does not come. The application would notice that only after it has begun.
    """
    messages, size, more = list[Message](), 0, True
    while more and size <= SMALL:
        messages.append(message := await receive())
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    messages.reverse()

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


def _routed(scope: Message) -> Message:
    """A request as the routes know it."""
    routed = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
    encoded = scope.get("raw_path") or quote(scope["path"]).encode()
    at = encoded.find(b"/items/")
    return {**routed, "path": encoded.decode("latin-1")} if at == len(scope.get("root_path", "")) else routed


def _host(header: str) -> str:
    """Without the port."""
    name, _, port = header.rpartition(":")
    return name if name and port.isdigit() and not (name.startswith("[") and not name.endswith("]")) else header


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
