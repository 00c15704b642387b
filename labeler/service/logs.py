"""Request ids, one log line and the counters of every request."""

import logging
import random
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labeler.grounding.engine import current_request_id
from labeler.service.metrics import RequestMetrics

log = logging.getLogger(__name__)

QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})  # polled every few seconds: logged at level debug
_SAFE_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # may be written to a log unchanged


class RequestLog:
    """ASGI middleware that gives every request an id, counts it and logs one line about it, without its content.

    The id is the client's X-Request-ID if that is safe to log, else a new one. It is in `request.state.request_id`,
    `current_request_id` and the response's X-Request-ID.
    """

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        # Not a secret, so no cryptographic randomness is needed.
        request_id = given if _SAFE_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        scope.setdefault("state", {})["request_id"] = request_id
        current_request_id.set(request_id)
        status = 500  # what the server sends when the application sends nothing

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        started = time.perf_counter()
        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = str(getattr(scope.get("route"), "path", "unmatched"))  # the template: the number of paths is unbounded
        method = scope["method"] if route != "unmatched" else "any"
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        level = logging.DEBUG if route in QUIET_ROUTES and status < 400 else logging.INFO
        images = scope.get("state", {}).get("images")
        fields = {"method": method, "route": route, "status": status, "ms": round(seconds * 1000, 1)}
        log.log(level, "request", extra={"fields": fields | ({} if images is None else {"images": images})})
