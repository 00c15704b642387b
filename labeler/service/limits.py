"""uvicorn's HTTP parser in C, with the limits that it lacks: of heads, of their arrival, and of connections.

uvicorn's own `limit_concurrency` refuses requests, not connections: an idle socket never becomes a request.
`timeout_keep_alive` begins after the first answer. So neither keeps idle sockets from taking all file descriptors.
"""

import asyncio
import logging
import resource
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 * 1024  # bytes of a head or trailer; the limit that h11 has, too
HEAD_TIMEOUT_S = 10.0  # for a head to arrive
BODY_BEGINS = 16 * 1024  # bytes of a body that is surely on its way ...
BODY_GRACE_S = 0.1  # ... or this long after the head, the application is asked
ACCEPT_LINE_S = 10.0  # between two log lines about connections that could not be accepted

log = logging.getLogger(__name__)


class BoundedHttp(HttpToolsProtocol):
    """One connection; takes a third of a millisecond less per request than h11, which is written in Python.

    When there are `max_connections`, a new one replaces the one that has been waiting for its client for the longest
    time: idle, in the middle of a request, or with an answer that the client does not read. A connection whose request
    is being answered is never closed; when all are, the new one is.

    A request that comes before the one before it was answered ends the connection with that answer, as HTTP allows, and
    is sent again by its client. uvicorn would queue it and stop reading, and so not notice that the client has gone.

    The application is not asked before a body has begun: what it does for a request takes ten times as long as all else
    about a connection, and of many heads without bodies most have been replaced by then.
    """

    max_connections = 512

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting = 0  # bytes received since the last complete head or piece of body
        self._since = time.monotonic()  # when it began to wait for its client
        self._arriving = True  # it waits for a head or a body
        self._ends = False  # with the answer that is being made; what else arrives is not read
        self._head_deadline: asyncio.TimerHandle | None = None
        self._begun: asyncio.Event | None = None  # the body of this request
        self._body = 0  # bytes of it
        self._application, self.app = self.app, self._when_begun

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn narrows it
        self._expect_head()
        if len(self.connections) > self.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_deadline()
        self._begin()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ends:
            return
        self._waiting += len(data)
        if self._head_deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()  # of the next request
        super().data_received(data)
        if self._waiting > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response(f"More than {MAX_HEAD} bytes of headers.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self.cycle is not None and not self.cycle.response_complete:
            self._ends, self.cycle.keep_alive = True, False

    def on_headers_complete(self) -> None:
        self._waiting = 0
        if not self._ends:
            self._cancel_head_deadline()
            self._begun, self._body = asyncio.Event(), 0
            super().on_headers_complete()
            if self.expect_100_continue:
                self._begin()

    def on_body(self, body: bytes) -> None:
        self._waiting = 0
        self._body += len(body)
        if self._body > BODY_BEGINS:
            self._begin()
        if not self._ends:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._waiting = 0
        if not self._ends:
            self._arriving = False
            super().on_message_complete()
            self._begin()

    def on_response_complete(self) -> None:
        self._arriving, self._since = True, time.monotonic()
        super().on_response_complete()

    def _begin(self) -> None:
        if self._begun is not None:
            self._begun.set()

    async def _when_begun(self, scope: Any, receive: Any, send: Any) -> None:
        begun, cycle = self._begun, self.cycle
        if begun is not None and not begun.is_set():
            late = self.loop.call_later(BODY_GRACE_S, begun.set)
            await begun.wait()
            late.cancel()
            if cycle is not None and cycle.disconnected:
                return  # nobody waits for an answer
        await self._application(scope, receive, send)

    def _expect_head(self) -> None:
        self._arriving, self._since = True, time.monotonic()
        self._head_deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _cancel_head_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _give_up(self) -> None:
        self._head_deadline = None
        if not self.transport.is_closing():
            self.transport.close()

    def _make_room(self) -> None:
        waiting = [one for one in self.connections if isinstance(one, BoundedHttp) and one is not self]
        candidates = [one for one in waiting if one._arriving or one.transport.get_write_buffer_size()]
        last = min(candidates, key=lambda one: one._since, default=self)
        self.connections.discard(last)  # at once: many may come before its end is noticed
        last.transport.abort()


def bounded_http(max_connections: int) -> type[BoundedHttp]:
    """Connections of one server: at most `max_connections`, and at most half of this process's file descriptors, which
    leaves the other half to files and to the model servers."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max_connections if soft == resource.RLIM_INFINITY else max(1, min(max_connections, soft // 2))
    return type("BoundedHttp", (BoundedHttp,), {"max_connections": limit})


class SparseAcceptLog(logging.Filter):
    """Of asyncio's lines about connections that cannot be accepted (it pauses for a second after them), one every
    ACCEPT_LINE_S, without its traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if "accept" not in str(record.msg):
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + ACCEPT_LINE_S
        record.exc_info = None
        return True
