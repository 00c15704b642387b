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
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

import httpx
from pydantic_core import from_json, to_json

from labeler.engines.bounded_http import BoundedHttp
from labeler.grounding.engine import (
    EngineAwayError,
    EngineDownError,
    EngineError,
    EngineRefusedError,
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
SCANNED = 64 * 1024  # bytes of it that are looked through for what must not be shown
SMALL_REPLY = 256 * 1024  # bytes that are parsed in a millisecond
# Codes that can be about the question itself; with every other error code the server answers nobody as we ask it.
ABOUT_QUESTION = frozenset({400, 413, 422})
FIX = "see the log of the vLLM server, and LABELER_UPSTREAM_URL, LABELER_MODEL"
_IMAGE = re.compile(r"base64,[A-Za-z0-9+/=]+")

Shape = Callable[[dict[str, Any]], str]  # what is wrong with the object of a response; "" for nothing


def any_object(_: dict[str, Any]) -> str:
    return ""


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
        self._secrets = [secret for secret in (url.password, *headers.values()) if secret]
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
        self,
        method: str,
        path: str,
        payload: dict[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        shape: Shape = any_object,
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
        if len(response.content) > SMALL_REPLY:
            return await asyncio.to_thread(self._object, response, shape)
        return self._object(response, shape)

    async def check(self, model: str, timeout_s: float) -> None:
        """Raises EngineError unless it lists `model` now."""
        names = [str(entry.get("id")) for entry in await self.listed(timeout_s) if isinstance(entry, dict)]
        if model not in names:
            listing = str(names)[:SHOWN]
            raise EngineError(f"the server does not list {model!r} but {listing}", path=self.name, fix=FIX)

    async def listed(self, timeout_s: float) -> list[Any]:
        """Its models, as it says it. Raises EngineError."""
        found = (await self.ask("GET", "/v1/models", timeout_s=timeout_s)).get("data")
        return found if isinstance(found, list) else []

    def _request(
        self, method: str, path: str, payload: dict[str, Any] | None, timeout_s: float | None
    ) -> httpx.Request:
        headers = {"Accept-Encoding": "identity", **self._headers}
        if payload is not None:
            headers["Content-Type"] = "application/json"
        if request_id := current_request_id.get():  # numbered, because vLLM rejects an id that is already running
            headers["X-Request-ID"] = f"{request_id}-{self.asked}"
        timeout = self._timeout if timeout_s is None else httpx.Timeout(timeout_s)
        content = None if payload is None else to_json(payload)
        extensions = {"timeout": timeout.as_dict()}
        return httpx.Request(method, self._root + path, headers=headers, content=content, extensions=extensions)

    def _object(self, response: httpx.Response, shape: Shape) -> dict[str, Any]:
        if response.status_code != httpx.codes.OK:
            what = f"the server answered {response.status_code}: {self._shown(response)}"
            if response.status_code in ABOUT_QUESTION:
                raise EngineRefusedError(what, path=self.name, fix=FIX)
            if transport_retryable(response.status_code):
                raise EngineDownError(what, path=self.name, fix=FIX, retry_after_s=retry_after_s(response.headers))
            raise EngineError(what, path=self.name, fix=FIX)
        try:
            reply = from_json(response.content)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            what = f"the response is not a JSON object: {self._shown(response)!r}"
            raise EngineDownError(what, path=self.name, fix=FIX)
        if fault := shape(reply):
            what = f"the response is not a chat completion ({fault}): {self._shown(response)!r}"
            raise EngineDownError(what, path=self.name, fix=FIX)
        return reply

    def _shown(self, response: httpx.Response) -> str:
        """The start of a response for errors and logs, without the image and the key, which some servers quote."""
        text = _IMAGE.sub("base64,...", response.content[:SCANNED].decode(errors="replace"))
        for secret in self._secrets:
            text = text.replace(secret.removeprefix("Bearer ").removeprefix("Basic "), "**********")
        return text[:SHOWN]


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
        transport = transport or BoundedHttp()
        timeout = httpx.Timeout(settings.answer_timeout_s, connect=settings.connect_timeout_s)
        found = map(_checked, dict.fromkeys(settings.upstream_urls))
        servers = [Replica(url, transport, _authorization(settings, url), timeout) for url in found]
        return cls(servers, settings.model, transport, probe_timeout_s=settings.probe_timeout_s)

    async def ask(self, path: str, payload: dict[str, Any], shape: Shape = any_object) -> dict[str, Any]:
        """The JSON object that the least busy server responds with.

        shape: says what is wrong with an object that is not an answer; a server that sends one cannot answer now.

        A refusal counts only after the other servers have been asked, too. A server that refuses everything (wrong
        key, wrong address), or what another one answers, is taken out of use: it answers at once, so it would
        otherwise be the least busy one and get nearly all questions.

        Raises EngineAwayError, and takes that server out of use, when it cannot answer now; EngineRefusedError when all
        refuse this question.
        """
        refusals: dict[Replica, EngineError] = {}
        while server := self._least_busy(refusals):
            try:
                reply = await server.ask("POST", path, payload, shape=shape)
            except EngineAwayError as err:
                self._take_out(server, err)
                raise
            except EngineError as err:
                if not isinstance(err, EngineRefusedError):
                    self._take_out(server, err)
                refusals[server] = err
                continue
            for refusing, reason in refusals.items():
                self._take_out(refusing, reason)
            server.faults = 0
            return reply
        if about_question := [err for err in refusals.values() if isinstance(err, EngineRefusedError)]:
            raise about_question[0]
        refusal = next(iter(refusals.values()))  # a key or an address can be put right, and the question asked again
        raise EngineDownError(refusal.what, path=refusal.path, fix=refusal.fix)

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

    async def listed(self) -> list[Any]:
        """The models of the first server, as it says it. Raises EngineError."""
        return await self._servers[0].listed(self._probe_timeout_s)

    def states(self) -> tuple[UpstreamState, ...]:
        return tuple(UpstreamState(server.name, server.up, server.in_flight) for server in self._servers)

    async def close(self) -> None:
        returning = [server.coming_back for server in self._servers if server.coming_back]
        for task in returning:
            task.cancel()
        await asyncio.gather(*returning, return_exceptions=True)
        await self._transport.aclose()

    def _least_busy(self, refused_by: Collection[Replica]) -> Replica | None:
        """Of the servers in use; where none is, of all. None when there is no other than those that refused."""
        candidates = [server for server in self._servers if server.up and server not in refused_by]
        if not candidates and not refused_by:
            candidates = [*self._servers]
        return min(candidates, key=lambda server: (server.in_flight, server.asked), default=None)

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
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise ConfigError(
            "LABELER_UPSTREAM_URL holds something that is not an HTTP URL",
            fix="set it to http://host:port[,http://...]",
        )
    return parsed
