"""Connections whose clients take their time: each has some seconds for the next request, and none keeps others out."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["GONE", "MOST_CONNECTIONS", "Impatient", "raise_file_limit"]

HEAD_SECONDS = 10.0
"""For the head of a request, from the connection's begin or the request's first byte on."""
BODY_SECONDS = 20.0
LEAST_BYTES = 200_000
"""Of a body in each `BODY_SECONDS` that it takes; slower ones are given up, as Apache's mod_reqtimeout does."""
MOST_UNREAD = 256_000
"""Bytes of a body that nobody reads, its request having been answered, until the connection is cut."""
MOST_CONNECTIONS = 1000
LINGERING = 1.0
GONE = "dualtower.gone"
"""Key of a request's scope, true when its client has gone."""
LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Impatient(HttpToolsProtocol):
    """HTTP/1.1 for uvicorn that closes a connection whose request does not come.

    Of more than `MOST_CONNECTIONS` connections the one that has been waited for longest is closed, so that clients who
    open many and say nothing only keep out each other.
    """

    _timer: asyncio.TimerHandle | None = None
    _received = 0
    _in_body = False

    @property
    def _waiting(self) -> dict[Impatient, None]:
        """The server's connections of which a request is waited for, the longest first."""
        waiting: dict[Impatient, None] = vars(self.server_state).setdefault("waiting", {})
        return waiting

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        self._wait(HEAD_SECONDS)
        if len(self.connections) > MOST_CONNECTIONS:
            longest = next(iter(self._waiting))  # itself, where all others are being answered
            longest.transport.abort()
            longest._come()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._come()
        if self.scope is not None:
            cast(dict[str, Any], self.scope)[GONE] = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        self._received += len(data)
        super().data_received(data)
        if self._in_body and self._received > MOST_UNREAD and self.cycle.response_complete:
            self._come()
            self.transport.pause_reading()  # what else it sends fills its own buffers
            self.loop.call_later(LINGERING, self.transport.abort)  # until then the answer can be read

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._wait(HEAD_SECONDS)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request's head is there."""
        self._received, self._in_body = 0, True
        self._wait(BODY_SECONDS)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is there."""
        self._in_body = False
        self._come()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request has been answered; uvicorn itself waits for the next one, if all of this one was read."""
        super().on_response_complete()
        if self._timer is None and self.cycle.response_complete and not self.transport.is_closing():
            self._waiting[self] = None

    def timeout_keep_alive_handler(self) -> None:
        """No further request has come; who does not even fetch the answer is cut off."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _wait(self, seconds: float) -> None:
        self._come()
        self._waiting[self] = None
        self._timer = self.loop.call_later(seconds, self._late)

    def _come(self) -> None:
        """What was waited for is there, or never will be."""
        self._waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        enough, self._received = self._received >= LEAST_BYTES, 0
        if enough and self._in_body:
            self._timer = self.loop.call_later(BODY_SECONDS, self._late)
            return
        self._waiting.pop(self, None)
        has_begun = self.headers is not None  # who has said nothing need not be told
        if has_begun and (self.cycle is None or not self.cycle.response_started):
            self.transport.write(LATE)
        self.transport.close()
        self.loop.call_later(HEAD_SECONDS, self.transport.abort)


def raise_file_limit() -> None:
    """Let this process have as many files open as its system lets it: each connection is one."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < 4 * MOST_CONNECTIONS:
            wanted = 4 * MOST_CONNECTIONS if hard == resource.RLIM_INFINITY else min(4 * MOST_CONNECTIONS, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
