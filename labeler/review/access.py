"""Who may use the page: a browser on this machine that was given the token, and nothing that another page sends."""

import hmac
import secrets
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import URL
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_IMAGES = 50_000  # of one request
MAX_VALUES = MAX_IMAGES + 256  # of a body
MAX_BODY_BYTES = 4 * 2**20  # 50,000 ids
HEADERS = {
    # nothing from elsewhere, no script or style in a page's text
    "content-security-policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}


def new_token() -> str:
    return secrets.token_urlsafe(24)


class TokenCheck:
    """ASGI middleware: `?token=...` becomes a cookie of this port, everything without one is refused (403)."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app, self._token, self._cookie = app, token, f"dgreid_review_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        request = Request(scope)
        given = request.query_params.get("token")
        if given is not None and self._is_right(given):
            rest = urlencode([(name, value) for name, value in parse_qsl(request.url.query) if name != "token"])
            answer = RedirectResponse(_local(request.url, rest), status_code=303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            await answer(scope, receive, with_headers)
        elif given is not None or not self._is_right(request.cookies.get(self._cookie, "")):
            text = "This page needs the address that `dgreid review` printed, with its token.\n"
            await PlainTextResponse(text, status_code=403)(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)

    def _is_right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


class BodyLimit:
    """ASGI middleware that refuses (413) bodies of more bytes or values than a page of ours sends, before they are
    parsed: JSON of a few megabytes can hold millions of values, which take minutes with the interpreter's lock held."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, values, more = bytearray(), 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the browser has gone
            piece = message.get("body", b"")
            body += piece
            values += piece.count(b",")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY_BYTES or values > MAX_VALUES:
                text = f"more than {MAX_BODY_BYTES} bytes or {MAX_VALUES} values: choose fewer images\n"
                await PlainTextResponse(text, status_code=413)(scope, receive, send)
                return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, again, send)


def _local(url: URL, query: str) -> str:
    """The path of the same page; never another host, which a path of two slashes would name."""
    return "/" + url.path.lstrip("/") + (f"?{query}" if query else "")
