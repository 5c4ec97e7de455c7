"""Connections whose clients take their time: each has some seconds for the next request, and none keeps others out."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["GONE", "MAX_CONNECTIONS", "TimeLimitedProtocol", "raise_file_limit"]

HEAD_SECONDS = 10.0
"""Time for the head of a request, from the connection's begin or the request's first byte on."""
BODY_SECONDS = 20.0
MAX_HEAD = 64_000
"""Bytes of a request's head."""
MAX_HEADERS = 100
MAX_AROUND = 1_000_000
"""Bytes around a body: sizes of its chunks, and what follows the last one."""
MAX_AT_ONCE = 16
"""Requests that a client may send before the first of them is answered."""
MIN_BYTES = 200_000
"""Bytes of a body in each `BODY_SECONDS` that it takes; slower ones are given up, as by Apache's mod_reqtimeout."""
MAX_UNREAD = 256_000
"""Bytes of a body that nobody reads, its request having been answered, until the connection is cut."""
PIECE = 16_384
"""Bytes of a body for which a request that waits for it is woken."""
MAX_CONNECTIONS = 1000
MAX_OUTSIDE = 2000
"""Further connections that wait, unread, until one of the others ends or is closed for them."""
ADMISSION = 0.002
"""Seconds between those that are let in: who comes again and again must leave the time to answer others."""
LINGERING = 1.0
GONE = "dualtower.gone"
"""Key of a request's scope, true when its client has gone."""
LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class TimeLimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 for uvicorn that closes a connection whose request does not come, or whose answer is not read.

    What of a request is not its body is bounded here; the body is `Guard`'s business. Of more than `MAX_CONNECTIONS`
    connections the one that has been waited for longest is closed, so that clients who open many and say nothing only
    keep out each other; whoever comes then waits for his turn.
    """

    _timer: asyncio.TimerHandle | None = None
    _received = 0
    _around = 0
    _in_body = _is_unread = False
    _asked: tuple[RequestResponseCycle, ...] = ()
    """Requests that are not answered yet."""

    @property
    def _waiting(self) -> dict[TimeLimitedProtocol, None]:
        """The server's connections whose clients are waited for, the longest first."""
        waiting: dict[TimeLimitedProtocol, None] = vars(self.server_state).setdefault("waiting", {})
        return waiting

    @property
    def _outside(self) -> dict[TimeLimitedProtocol, None]:
        """The server's connections that are not read yet, the first one first."""
        outside: dict[TimeLimitedProtocol, None] = vars(self.server_state).setdefault("outside", {})
        return outside

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        if len(self.connections) <= MAX_CONNECTIONS:
            self._wait(HEAD_SECONDS)
        elif len(self._outside) >= MAX_OUTSIDE:
            self._cut()
        else:
            transport.pause_reading()
            self._outside[self] = None
            if len(self._outside) == 1:
                self.loop.call_later(ADMISSION, self._admit)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._outside.pop(self, None)
        self._come()
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        self._received += len(data)
        self._around += len(data)
        super().data_received(data)
        if self._around > (MAX_AROUND if self._in_body else MAX_HEAD):
            self._cut()
        elif self._in_body and self._received > MAX_UNREAD and self.cycle.response_complete:
            self._come()
            self.transport.pause_reading()  # what else it sends fills its own buffers
            self.loop.call_later(LINGERING, self._cut)  # until then the answer can be read

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._around = 0
        self._wait(HEAD_SECONDS)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A line of the head, or one that follows the body. What is raised here is answered with 400."""
        if self._in_body or len(self.headers) >= MAX_HEADERS:
            raise ValueError("more headers than a request may have")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request's head is there."""
        self._received, self._around, self._in_body = 0, 0, True
        self._wait(BODY_SECONDS)
        super().on_headers_complete()
        self._asked = (*(cycle for cycle in self._asked if not cycle.response_complete), self.cycle)
        if len(self.pipeline) > MAX_AT_ONCE:
            raise ValueError("more requests at once than a client may send")

    def on_body(self, body: bytes) -> None:
        """Some bytes of a body; the application hears of them a piece at a time, or at the body's end."""
        self._around -= len(body)
        if self.cycle.response_complete or len(self.cycle.body) + len(body) >= PIECE:
            super().on_body(body)
        else:
            self.cycle.body += body

    def on_message_complete(self) -> None:
        """A request is there."""
        self._in_body, self._around = False, 0
        self._come()
        if self._is_unread:  # the answer to one before
            self._wait(BODY_SECONDS)
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read what it is answered."""
        super().pause_writing()
        self._is_unread = True
        self._wait(BODY_SECONDS)

    def resume_writing(self) -> None:
        """It does again."""
        self._is_unread = False
        self._come()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """A request has been answered; uvicorn itself waits for the next one, if all of this one was read."""
        super().on_response_complete()
        if self._timer is None and self.cycle.response_complete and not self.transport.is_closing():
            self._waiting[self] = None

    def timeout_keep_alive_handler(self) -> None:
        """No further request has come; who does not even fetch the answer is cut off."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(HEAD_SECONDS, self._cut)

    def send_400_response(self, msg: str) -> None:
        """What has come is no request, and nothing that follows it is read."""
        self._leave()
        super().send_400_response(msg)

    def _admit(self) -> None:
        """Let in the first of those outside, in the place of whoever has been waited for longest."""
        outside, waiting = self._outside, self._waiting
        is_full = len(self.connections) - len(outside) >= MAX_CONNECTIONS
        if outside and is_full and waiting:
            longest = next(iter(waiting))
            longest._come()
            longest._cut()
        if outside and (waiting or not is_full):  # else all are being answered
            first = next(iter(outside))
            del outside[first]
            first.transport.resume_reading()
            first._wait(HEAD_SECONDS)
        if outside:
            self.loop.call_later(ADMISSION, self._admit)

    def _leave(self) -> None:
        """Nobody waits for answers any more."""
        for cycle in self._asked:
            cast(dict[str, Any], cycle.scope)[GONE] = True
            cycle.disconnected = True
            cycle.message_event.set()

    def _cut(self) -> None:
        self._leave()
        self.transport.abort()

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
        enough, self._received = self._received >= MIN_BYTES, 0
        if enough and self._in_body:
            self._timer = self.loop.call_later(BODY_SECONDS, self._late)
            return
        self._waiting.pop(self, None)
        has_begun = self.headers is not None  # who has said nothing need not be told
        if has_begun and (self.cycle is None or not self.cycle.response_started):
            self.transport.write(LATE)
        self._leave()
        self.transport.close()
        self.loop.call_later(HEAD_SECONDS, self._cut)


def raise_file_limit() -> None:
    """Let this process have as many files open as its system lets it: each connection is one."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < 4 * MAX_CONNECTIONS:
            wanted = 4 * MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(4 * MAX_CONNECTIONS, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
