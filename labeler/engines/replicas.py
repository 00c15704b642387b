"""Load balancing over one or several servers of the same model.

Each question goes to the server with the fewest in flight. A server that fails is taken out of use, for longer with
every failure in a row, and returns when it lists its model again. When all are out, the least busy one is asked anyway:
so a single server is never out, and the error that the user sees is the server's own.
"""

import asyncio
import base64
import logging
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import aiohttp
import httpx
from pydantic_core import from_json, to_json

from labeler.grounding.engine import (
    EngineAwayError,
    EngineDownError,
    EngineError,
    EngineSlowError,
    UpstreamState,
    current_request_id,
)
from labeler.grounding.retry import pause_s, retry_after_s, transport_retryable
from labeler.settings import Settings
from shared.errors import ConfigError

log = logging.getLogger(__name__)

FIRST_OUT_S = 0.5
LONGEST_OUT_S = 15.0
SHOWN = 300  # characters of a server's answer in an error
FIX = "see the log of the vLLM server, and LABELER_UPSTREAM_URL, LABELER_MODEL"
_IMAGE = re.compile(r"base64,[A-Za-z0-9+/=]+")


class UpstreamHttp(httpx.AsyncBaseTransport):
    """aiohttp as a transport of httpx, at a fourth of the processor time of httpx's own, which is written in Python.

    What is in front of a busy model runs on the cores that the model's own front end needs, so the difference is
    throughput. Unlimited connections; no redirects, cookies, or proxies of the environment. Requests raise httpx's
    TimeoutException after the limits in their `timeout` extension, NetworkError when there is no response.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None  # created inside the event loop

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limits = request.extensions["timeout"]
        try:
            async with self._open().request(
                request.method,
                str(request.url),
                data=request.content or None,
                headers=request.headers.multi_items(),
                timeout=aiohttp.ClientTimeout(sock_connect=limits["connect"], sock_read=limits["read"]),
                allow_redirects=False,
            ) as response:
                content = await response.read()
                return httpx.Response(response.status, headers=response.raw_headers, content=content)
        except TimeoutError as err:
            raise httpx.ReadTimeout(str(err), request=request) from err
        except (aiohttp.ClientError, OSError) as err:
            raise httpx.NetworkError(f"{type(err).__name__}: {err}", request=request) from err

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=httpx.create_ssl_context(trust_env=False)),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # httpx.Response does that
                skip_auto_headers=("Accept-Encoding", "User-Agent"),
            )
        return self._session


class Replica:
    """One server, its load and its failures.

    Args:
        url: its root, without /v1.
        transport: sends the requests, without httpx's client around it: redirects, cookies and merged settings take a
            third of the time of a request and are not needed.
        headers: of every request.
        timeout: default of every request.
    """

    def __init__(
        self, url: httpx.URL, transport: httpx.AsyncBaseTransport, headers: Mapping[str, str], timeout: httpx.Timeout
    ) -> None:
        self._root = str(url.copy_with(userinfo=b"")).rstrip("/")
        self._transport, self._headers, self._timeout = transport, headers, timeout
        self.name = url.netloc.decode()
        self.in_flight = self.asked = 0
        self.faults = 0  # in a row
        self.coming_back: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        return self.coming_back is None

    async def ask(
        self, method: str, path: str, payload: dict[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """The JSON object of the response. Raises EngineError, EngineAwayError when a retry may help."""
        self.asked += 1
        self.in_flight += 1
        try:
            response = await self._transport.handle_async_request(self._request(method, path, payload, timeout_s))
            await response.aread()
        except httpx.TimeoutException as err:
            raise EngineSlowError(f"no answer in time ({type(err).__name__})", path=self.name, fix=FIX) from err
        except httpx.HTTPError as err:
            raise EngineDownError(f"{type(err).__name__}: {err}", path=self.name, fix=FIX) from err
        finally:
            self.in_flight -= 1
        return self._object(response)

    async def check(self, model: str, timeout_s: float) -> None:
        """Raises EngineError unless it lists `model` now."""
        listed = (await self.ask("GET", "/v1/models", timeout_s=timeout_s)).get("data")
        names = (
            [str(entry.get("id")) for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        )
        if model not in names:
            raise EngineError(f"the server does not list {model!r} but {names}", path=self.name, fix=FIX)

    def _request(
        self, method: str, path: str, payload: dict[str, Any] | None, timeout_s: float | None
    ) -> httpx.Request:
        headers = dict(self._headers)
        if payload is not None:
            headers["Content-Type"] = "application/json"
        if request_id := current_request_id.get():  # numbered, because vLLM rejects an id that is already running
            headers["X-Request-ID"] = f"{request_id}-{self.asked}"
        timeout = self._timeout if timeout_s is None else httpx.Timeout(timeout_s)
        content = None if payload is None else to_json(payload)
        extensions = {"timeout": timeout.as_dict()}
        return httpx.Request(method, self._root + path, headers=headers, content=content, extensions=extensions)

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code != httpx.codes.OK:
            what = f"the server answered {response.status_code}: {_shown(response)}"
            if transport_retryable(response.status_code):
                raise EngineDownError(what, path=self.name, fix=FIX, retry_after_s=retry_after_s(response.headers))
            raise EngineError(what, path=self.name, fix=FIX)
        try:
            reply = from_json(response.content)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise EngineDownError(f"the response is not a JSON object: {_shown(response)!r}", path=self.name, fix=FIX)
        return reply


class Replicas:
    """Servers of one model. Safe to use from many tasks of one event loop.

    Args:
        model: the name under which each of them lists it.
        transport: of all of them; closed by `close`.
        probe_timeout_s: for listing the models of a server.
    """

    def __init__(
        self,
        servers: Sequence[Replica],
        model: str,
        transport: httpx.AsyncBaseTransport,
        *,
        probe_timeout_s: float = 10.0,
    ) -> None:
        self._servers, self._model, self._transport = tuple(servers), model, transport
        self._probe_timeout_s = probe_timeout_s

    @classmethod
    def from_settings(cls, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> Self:
        """Raises ConfigError when LABELER_UPSTREAM_URL holds no or an invalid URL. `transport`: see VllmServer."""
        if not settings.upstream_urls:
            raise ConfigError(
                "LABELER_UPSTREAM_URL names no model server",
                fix="set LABELER_UPSTREAM_URL=http://host:port[,http://...]",
            )
        transport = transport or UpstreamHttp()
        timeout = httpx.Timeout(settings.answer_timeout_s, connect=settings.connect_timeout_s)
        found = map(_checked, dict.fromkeys(settings.upstream_urls))
        servers = [Replica(url, transport, _authorization(settings, url), timeout) for url in found]
        return cls(servers, settings.model, transport, probe_timeout_s=settings.probe_timeout_s)

    async def ask(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that the least busy server responds with.

        Raises EngineAwayError, and takes that server out of use, when it cannot answer now; EngineError when it
        refuses.
        """
        server = self._least_busy()
        try:
            reply = await server.ask("POST", path, payload)
        except EngineAwayError as err:
            self._take_out(server, err)
            raise
        server.faults = 0
        return reply

    async def check(self) -> None:
        """Take servers that do not list the model out of use. Raises EngineError when none lists it."""
        checks = [server.check(self._model, self._probe_timeout_s) for server in self._servers]
        results = await asyncio.gather(*checks, return_exceptions=True)
        faults = []
        for server, result in zip(self._servers, results, strict=True):
            if isinstance(result, EngineError):
                self._take_out(server, result)
                faults.append(result)
            elif isinstance(result, BaseException):
                raise result
        if len(faults) == len(self._servers):
            raise faults[0]

    def states(self) -> tuple[UpstreamState, ...]:
        return tuple(UpstreamState(server.name, server.up, server.in_flight) for server in self._servers)

    async def close(self) -> None:
        returning = [server.coming_back for server in self._servers if server.coming_back]
        for task in returning:
            task.cancel()
        await asyncio.gather(*returning, return_exceptions=True)
        await self._transport.aclose()

    def _least_busy(self) -> Replica:
        candidates = [server for server in self._servers if server.up] or self._servers
        return min(candidates, key=lambda server: (server.in_flight, server.asked))

    def _take_out(self, server: Replica, fault: EngineError) -> None:
        if not server.up:  # all questions in flight when it failed count as one failure
            return
        server.faults += 1
        if len(self._servers) > 1:
            log.warning("%s is out of use: %s", server.name, fault.what)
        asked_s = fault.retry_after_s if isinstance(fault, EngineAwayError) else None
        server.coming_back = asyncio.create_task(self._come_back(server, asked_s))

    async def _come_back(self, server: Replica, asked_s: float | None) -> None:
        """Check with growing pauses until the server lists the model, then put it back into use."""
        checks = 0
        while True:
            failures = server.faults + checks
            await asyncio.sleep(
                pause_s(failures, random.random(), base_s=FIRST_OUT_S, longest_s=LONGEST_OUT_S, asked_s=asked_s)
            )
            try:
                await server.check(self._model, self._probe_timeout_s)
                break
            except EngineError as err:
                checks, asked_s = checks + 1, None
                log.debug("%s is still out of use: %s", server.name, err.what)
        server.coming_back = None
        if len(self._servers) > 1:
            log.warning("%s is in use again", server.name)


def _authorization(settings: Settings, url: httpx.URL) -> dict[str, str]:
    """The header with the API key, or with user name and password of the URL."""
    if settings.upstream_api_key:
        return {"Authorization": f"Bearer {settings.upstream_api_key.get_secret_value()}"}
    if url.userinfo:
        pair = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {}


def _checked(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(
            "LABELER_UPSTREAM_URL holds something that is not an HTTP URL",
            fix="set it to http://host:port[,http://...]",
        )
    return parsed


def _shown(response: httpx.Response) -> str:
    """The start of a response for errors and logs, without the image, which some servers quote."""
    return _IMAGE.sub("base64,...", response.text)[:SHOWN]
