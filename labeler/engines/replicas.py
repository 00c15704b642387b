"""One or several equal model servers behind one name.

Each question goes to the server with the least in flight. A server that fails a question is taken out, longer with
every failure in a row, and comes back when it lists its model again. When all are out the least busy one is asked
anyway: with a single server it is as if nobody counted, and the error a user sees is the server's own.
"""

import asyncio
import base64
import logging
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import httpx
from pydantic_core import from_json, to_json

from labeler.engines.upstream_http import UpstreamHttp
from labeler.grounding.engine import EngineAwayError, EngineDownError, EngineError, EngineSlowError, UpstreamState
from labeler.grounding.retry import pause_s, retry_after_s, transport_retryable
from labeler.service.request_ids import current_request_id
from labeler.settings import Settings
from shared.errors import ConfigError

log = logging.getLogger(__name__)

FIRST_OUT_S = 0.5
LONGEST_OUT_S = 15.0
SHOWN = 300  # characters of a server's answer in an error
FIX = "see the log of the vLLM server, and LABELER_UPSTREAM_URL, LABELER_MODEL"
_IMAGE = re.compile(r"base64,[A-Za-z0-9+/=]+")


class Replica:
    """One server and how it fares.

    Args:
        url: its root, without /v1.
        transport: carries the requests. Nothing of httpx's client is around it: redirects, cookies and merged settings
            cost a third of a request and are not wanted here.
        headers: of every request.
        timeout: of every request, unless it says otherwise.
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
        """The JSON object it answers with. Raises EngineError, its subclasses when the fault may pass."""
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
        if request_id := current_request_id.get():  # numbered, because vLLM refuses an id that is already running
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
            raise EngineDownError(f"not an answer: {_shown(response)!r}", path=self.name, fix=FIX)
        return reply


class Replicas:
    """Servers of one model; safe to use from many tasks of one event loop.

    Args:
        model: the name under which each of them lists it.
        transport: of all of them; closed by `close`.
        probe_timeout_s: for one look at a server's model list.
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
        """Raises ConfigError when LABELER_UPSTREAM_URL holds no, or a damaged, URL. `transport`: see VllmServer."""
        if not settings.upstream_urls:
            raise ConfigError("no model server is named", fix="set LABELER_UPSTREAM_URL=http://host:port[,http://...]")
        transport = transport or UpstreamHttp()
        timeout = httpx.Timeout(settings.answer_timeout_s, connect=settings.connect_timeout_s)
        found = map(_checked, dict.fromkeys(settings.upstream_urls))
        servers = [Replica(url, transport, _authorization(settings, url), timeout) for url in found]
        return cls(servers, settings.model, transport, probe_timeout_s=settings.probe_timeout_s)

    async def ask(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that the least busy server answers with.

        Raises EngineAwayError, and takes that server out, when it cannot answer now; EngineError when it refuses.
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
        """Look at every server; those that do not list the model are taken out. Raises EngineError if all are."""
        looks = [server.check(self._model, self._probe_timeout_s) for server in self._servers]
        results = await asyncio.gather(*looks, return_exceptions=True)
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
        if not server.up:  # questions that were in flight when it fell are one fault, not many
            return
        server.faults += 1
        if len(self._servers) > 1:
            log.warning("%s is taken out: %s", server.name, fault.what)
        asked_s = fault.retry_after_s if isinstance(fault, EngineAwayError) else None
        server.coming_back = asyncio.create_task(self._come_back(server, asked_s))

    async def _come_back(self, server: Replica, asked_s: float | None) -> None:
        """Look again after ever longer pauses until the server lists the model; then it is asked again."""
        looks = 0
        while True:
            failures = server.faults + looks
            await asyncio.sleep(
                pause_s(failures, random.random(), base_s=FIRST_OUT_S, longest_s=LONGEST_OUT_S, asked_s=asked_s)
            )
            try:
                await server.check(self._model, self._probe_timeout_s)
                break
            except EngineError as err:
                looks, asked_s = looks + 1, None
                log.debug("%s is still out: %s", server.name, err.what)
        server.coming_back = None
        if len(self._servers) > 1:
            log.warning("%s is back", server.name)


def _authorization(settings: Settings, url: httpx.URL) -> dict[str, str]:
    """The header for the key, or for the name and password that the URL holds."""
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
            "LABELER_UPSTREAM_URL holds something that is no http URL", fix="set it to http://host:port[,http://...]"
        )
    return parsed


def _shown(response: httpx.Response) -> str:
    """The start of an answer for errors and logs; servers like to quote the image they refuse, we do not."""
    return _IMAGE.sub("base64,...", response.text)[:SHOWN]
