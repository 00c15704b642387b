"""Every answered request is counted and leaves one line in the log: route, status, time, images, not their content."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labeler.service.metrics import Metrics

log = logging.getLogger(__name__)

QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds by machines


class Observation:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # what the server answers when nothing else was sent

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, watched)
            finally:
                self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = str(getattr(scope.get("route"), "path", "unmatched"))  # the template: paths are endless, routes few
        method = scope["method"] if route != "unmatched" else "any"
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        level = logging.DEBUG if route in QUIET_ROUTES and status < 400 else logging.INFO
        images = scope.get("state", {}).get("images")
        fields = {"method": method, "route": route, "status": status, "ms": round(seconds * 1000, 1)}
        log.log(level, "request", extra={"fields": fields | ({} if images is None else {"images": images})})
