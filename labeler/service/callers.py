"""Who may ask at all: programs that call this service by one of its own names, and no page of another origin.

A browser that visits a foreign page can reach the loopback interface, by its address or by a name that is made to point
there. What it sends then tells: the foreign name in `Host`, the page in `Origin`, their relation in `Sec-Fetch-Site`.
Starlette's TrustedHostMiddleware does a third of this: it knows no IPv6 addresses and answers in its own form.
"""

import ipaddress
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from labeler.service.problems import problem
from labeler.settings import LOOPBACK

OWN_PAGES = frozenset({"", "none", "same-origin"})  # Sec-Fetch-Site of a program, of an address typed in, of our pages
SHOWN = 80  # characters of a header, in an error


class CallerCheck:
    """ASGI middleware that refuses requests of foreign pages (403) and for foreign hosts (421).

    Args:
        host: address or name that the server is bound to.
        allowed_hosts: further names, joined by commas; `*`: any.
        add_name: what a user can do to have another name accepted, for the message.
    """

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: str = "", add_name: str = "") -> None:
        self._app = app
        named = [name.strip().lower().strip("[]") for name in allowed_hosts.split(",") if name.strip()]
        self._any_host = "*" in named
        self._hosts = {*LOOPBACK, host.lower(), *named}
        self._any_address = host not in LOOPBACK  # addresses cannot be made to point elsewhere
        self._fix = f"use the service's address{add_name}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refused := self._refused(Headers(scope=scope))):
            await problem(Request(scope), *refused)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refused(self, headers: Headers) -> tuple[int, str, str] | None:
        """Status, what and fix of a request that must not be served."""
        hosts = headers.getlist("host")
        host = hosts[0].lower() if len(hosts) == 1 else ""
        if not self._any_host and not self._knows(host):
            return 421, f"this service does not serve the host {host[:SHOWN]!r}", self._fix
        own = {f"http://{host}", f"https://{host}"}
        origins = headers.getlist("origin")
        sites = headers.getlist("sec-fetch-site")
        if any(origin.lower() not in own for origin in origins) or any(site not in OWN_PAGES for site in sites):
            return 403, "pages of other origins may not use this service", "send the request from a program"
        return None

    def _knows(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            name, _ = parts.hostname or "", parts.port
        except ValueError:
            return False
        if parts.path or parts.query or parts.fragment or parts.username is not None:
            return False
        name = name.removesuffix(".")
        return name in self._hosts or (self._any_address and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
