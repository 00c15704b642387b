"""Every request has an id: the client's X-Request-ID when it is harmless, else a new one; answers carry it."""

import random
import re
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

current_request_id: ContextVar[str] = ContextVar("request_id", default="")  # of the request being answered
_HARMLESS = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # what may be written to a log as it came


class RequestIds:
    """ASGI middleware: sets `request.state.request_id`, `current_request_id` and the answer's X-Request-ID."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        # A made-up one is no secret, so it needs no call of the system.
        request_id = given if _HARMLESS.fullmatch(given) else f"{random.getrandbits(128):032x}"
        scope.setdefault("state", {})["request_id"] = request_id
        current_request_id.set(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)
