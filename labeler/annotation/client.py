"""Clients of the labelling service, with one interface: in this process without any server, or over HTTP."""

import asyncio
import base64
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import httpx
from pydantic import SecretStr, ValidationError

from labeler.annotation.backlog import Answered, Batch, Item, Request, batches
from labeler.annotation.responses import (
    MOST,
    MOST_PER_IMAGE,
    MOST_PER_PART,
    GiveAnswer,
    Lines,
    all_failed,
    problem_of,
    shown,
    whole_answers,
)
from labeler.engines.bounded_http import LINES, MOST_BYTES, NOTHING_PACKED, ON_LINE, BoundedHttp
from labeler.grounding.answers import BOUND_TO, ImageAnswer, ServiceInfo
from labeler.grounding.engine import Engine, EngineAwayError, EngineError, EngineUnfitError
from labeler.grounding.retry import BUSY_CODE, UNFIT_CODE, pause_s, retry_after_s, transport_retryable
from labeler.service.api_models import Answerer, ModelList, Ready
from labeler.service.grounding_service import GroundingService
from labeler.service.metrics import Metrics
from labeler.settings import Settings, check_key, load_settings
from shared.errors import ConfigError, DgreidError

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
READY_PAUSE_S = 2.0
READY_ANSWER_S = 10.0  # to answer about its readiness, at least: also where the whole wait is shorter
WAIT_LINE_S = 10.0  # between two lines about what is waited for
LONGEST_BUSY_S = 900.0  # of a service that has no place for a request, before its images count as failed
REJECTED_CODES = (400, 413, 422)  # this request was refused; others may still be answered
INFO_ANSWER_S = 60.0  # to say who answers
ANSWER_S = 600.0  # for a whole batch
BODY_SHARE = 0.6  # of the service's body limit that the file bytes of a batch may take: base64 adds a third


class ServiceError(DgreidError):
    """The labelling service cannot be used."""


class ServiceUnfitError(ServiceError):
    """Waiting does not help: its engine gives wrong boxes, or the URL is not that of a labelling service."""


class _Received(NamedTuple):
    """One answer per image; the seconds that the service asks to wait before a retry, if it does; whether it had no
    place for the request, which is no attempt."""

    answers: list[ImageAnswer]
    asked_s: float | None = None
    busy: bool = False


class GroundingClient(ABC):
    """One labelling service; an async context manager that closes it.

    Args:
        connections: `ground` calls that the caller may have in flight at once.
        attempts: requests for one batch before its images count as failed. The pauses between the default of 8 add up
            to at least half a minute, longer than a service takes to restart.
    """

    def __init__(self, *, connections: int = 8, attempts: int = 8) -> None:
        self.connections, self._attempts = connections, attempts
        self._bound: ServiceInfo | None = None  # who answers, as `info` said first

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def service_metrics(self) -> Metrics | None:
        """The counters of a service in this process."""
        return None

    @abstractmethod
    async def aclose(self) -> None: ...

    async def info(self) -> ServiceInfo:
        """Engine, model, prompt version, parts and limits. From then on every answer must come from them.

        Raises ServiceError, ServiceUnfitError when another engine, model or prompt answers than before.
        """
        told = await self._info()
        if self._bound is None:
            self._bound = told
        self._demand_same(told)
        return told

    def bind(self, info: ServiceInfo) -> None:
        """Every answer must come from this engine, model and prompt version, as another client's `info` said them."""
        self._bound = info

    @abstractmethod
    async def _info(self) -> ServiceInfo: ...

    async def wait_ready(self, timeout_s: float) -> float:
        """Wait until the service is ready; its mean IoU in 0..1 on the calibration image.

        Raises ServiceError after `timeout_s`, ServiceUnfitError at once when waiting does not help.
        """
        started = time.monotonic()
        last = ServiceError("no answer yet", fix="see the logs of the labelling service and of the model server")

        def waiting() -> str:
            where = f" [{last.path}]" if last.path else ""
            return f"waiting {time.monotonic() - started:.0f} of {timeout_s:.0f} s for the engine: {last.what}{where}"

        async with saying(waiting):
            while True:
                left = timeout_s - (time.monotonic() - started)
                try:
                    async with asyncio.timeout(max(left, READY_ANSWER_S)):
                        return await self._readiness()
                except ServiceUnfitError:
                    raise
                except ServiceError as err:
                    last = err
                except TimeoutError:
                    left = 0.0
                elapsed = time.monotonic() - started
                if left <= 0 or elapsed + READY_PAUSE_S > timeout_s:
                    what = f"not ready after {elapsed:.0f} s: {last.what}"
                    raise ServiceError(what, path=last.path, fix=last.fix) from last
                await asyncio.sleep(READY_PAUSE_S)

    async def ground(
        self, contents: Sequence[bytes], parts: Sequence[str], answered: GiveAnswer | None = None
    ) -> list[ImageAnswer]:
        """One answer per image file, in order. Images without an answer are sent again while that may help.

        A service that has no place for the request now (429) was not asked: it is tried again as long as it stays busy,
        up to LONGEST_BUSY_S.

        Args:
            answered: called once for each image with its index and its final answer, as soon as that is there.

        Raises ServiceError when the service cannot be used at all, ServiceUnfitError when another engine, model or
        prompt answers than `info` said; never for a failed image.
        """
        answers: dict[int, ImageAnswer] = {}
        given: set[int] = set()

        def give(index: int, answer: ImageAnswer) -> None:
            if answered and index not in given:
                given.add(index)
                answered(index, answer)

        def give_final(asked: Sequence[int], place: int, answer: ImageAnswer) -> None:
            if not answer.retryable:
                give(asked[place], answer)

        pending = list(range(len(contents)))
        failures, busy_s, refusals = 0, 0.0, 0
        while True:
            received = await self._once(
                [contents[index] for index in pending], parts, partial(give_final, tuple(pending))
            )
            for index, answer in zip(pending, received.answers, strict=True):
                if index not in answers or answers[index].error or not answer.error:  # keep partial answers
                    answers[index] = answer
                if not answers[index].retryable:
                    give(index, answers[index])
            pending = [index for index in pending if answers[index].retryable]
            if received.busy and busy_s < LONGEST_BUSY_S:
                refusals += 1
            else:
                failures, refusals = failures + 1, 0
            if not pending or failures >= self._attempts:
                for index in pending:
                    give(index, answers[index])
                return [answers[index] for index in range(len(contents))]
            pause = pause_s(
                refusals or failures,
                random.random(),
                base_s=FIRST_PAUSE_S,
                longest_s=LONGEST_PAUSE_S,
                asked_s=received.asked_s,
            )
            if received.busy:
                busy_s += max(pause, READY_PAUSE_S)
            await asyncio.sleep(pause)

    def requests(self, items: Iterable[Item], root: Path, batch_images: int) -> Iterator[Request]:
        """Read the items' files and ask about them: one request for each batch; `info` comes first.

        Args:
            root: folder that their paths are relative to.
            batch_images: in a request at most, within the service's limits.
        """
        info = self._bound
        assert info is not None, "info comes first"
        most = int(info.max_body_bytes * BODY_SHARE)
        for batch in batches(items, root, max_images=min(batch_images, info.max_images), max_bytes=most):
            arrived: list[Answered] = []
            yield Request(partial(self._answer, batch, info.parts, arrived), arrived)

    async def _answer(self, batch: Batch, parts: Sequence[str], arrived: list[Answered]) -> Sequence[Answered]:
        arrived.extend((item, None) for item in batch.unreadable)
        if contents := [item.content for item in batch.to_send]:
            await self.ground(contents, parts, lambda index, answer: arrived.append((batch.to_send[index], answer)))
        return ()

    def _demand_same(self, told: ServiceInfo | Answerer) -> None:
        """Raises ServiceUnfitError unless the engine, model, prompt version and rules are those of `info`."""
        if self._bound is None:
            return
        fields = [name for name in BOUND_TO if name in type(told).model_fields]
        pairs = [(name, getattr(self._bound, name), getattr(told, name)) for name in fields]
        if differing := [f"{name} {before!r} -> {now!r}" for name, before, now in pairs if before != now]:
            raise ServiceUnfitError(
                f"this is not the service that this run was started with: {'; '.join(differing)}",
                path=self._place,
                fix="start the first one again and run the same command, or use another label run for this one",
            )

    @property
    def _place(self) -> str | None:
        """Where the service is, for errors."""
        return None

    @abstractmethod
    async def _readiness(self) -> float:
        """Mean IoU in 0..1 on the calibration image. Raises ServiceError while the service is not ready."""

    @abstractmethod
    async def _once(self, images: Sequence[bytes], parts: Sequence[str], answered: GiveAnswer) -> _Received:
        """Ask once; `answered` is called with what comes before the end, all of which is among the answers."""


class InProcessClient(GroundingClient):
    """Calls a GroundingService in this process: no server, no encoding.

    The service's limits on images hold (pixels, images in work, time); those on HTTP requests (body size, requests in
    flight) do not apply.

    Args:
        settings: of the service.
        engine: by default the one that the settings name; closed by `aclose`.

    Raises ConfigError when the settings do not fit the engine.
    """

    def __init__(
        self, settings: Settings, engine: Engine | None = None, *, connections: int = 8, attempts: int = 8
    ) -> None:
        super().__init__(connections=connections, attempts=attempts)
        self._service = GroundingService(settings, engine)

    @property
    def service_metrics(self) -> Metrics:
        return self._service.metrics

    async def aclose(self) -> None:
        await self._service.aclose()

    async def _info(self) -> ServiceInfo:
        return self._service.info()

    async def _readiness(self) -> float:
        try:
            return await self._service.readiness()
        except EngineError as err:
            raise _unusable_engine(err) from err

    async def _once(self, images: Sequence[bytes], parts: Sequence[str], answered: GiveAnswer) -> _Received:
        try:
            return _Received(await self._service.ground(images, parts, answered))
        except EngineAwayError as err:
            return _Received(all_failed(images, parts, err.what, retryable=True), err.retry_after_s)
        except EngineError as err:
            raise _unusable_engine(err) from err


class HttpClient(GroundingClient):
    """Talks to a labelling service over HTTP.

    Args:
        url: root of the service.
        api_key: sent as `Authorization: Bearer <key>`.
        connections: `ground` calls in flight, each of which has its own.
        transport: replaces the network in tests.

    Raises ConfigError for an invalid HTTP URL.
    """

    def __init__(
        self,
        url: str,
        api_key: SecretStr | None = None,
        *,
        connections: int = 8,
        attempts: int = 8,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(connections=connections, attempts=attempts)
        checked = _checked(url)
        if api_key:
            check_key(api_key, "the API key of the labelling service")
        self._shown_url = str(checked.copy_with(userinfo=b"", query=None))
        self._http = httpx.AsyncClient(
            base_url=checked,
            headers=NOTHING_PACKED | ({"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {}),
            timeout=httpx.Timeout(ANSWER_S, connect=5),
            transport=transport or BoundedHttp(),
            trust_env=False,  # images must never pass through a proxy that the environment names
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    @property
    def _place(self) -> str:
        return self._shown_url

    async def _info(self) -> ServiceInfo:
        try:
            return ModelList.model_validate_json(await self._get("/v1/models", INFO_ANSWER_S)).data[0]
        except (ValidationError, IndexError) as err:
            raise self._unusable("its /v1/models is not that of a labelling service", ServiceUnfitError) from err

    async def _readiness(self) -> float:
        try:
            return Ready.model_validate_json(await self._get("/readyz")).calibration_iou
        except ValidationError as err:
            raise self._unusable("its /readyz is not that of a labelling service", ServiceUnfitError) from err

    async def _once(self, images: Sequence[bytes], parts: Sequence[str], answered: GiveAnswer) -> _Received:
        request = {"images": [base64.b64encode(image).decode() for image in images], "parts": list(parts)}
        told = Lines(images, parts, self._demand_same, answered)
        most = MOST + len(images) * (MOST_PER_IMAGE + len(parts) * MOST_PER_PART)
        try:
            response = await self._http.post(
                "/v1/ground",
                json=request,
                headers={"Accept": f"{LINES}, application/json"},
                extensions={MOST_BYTES: most, ON_LINE: told.read},
            )
        except httpx.HTTPError as err:
            what = f"{type(err).__name__}: {err}"
            if not transport_retryable(err):
                raise self._unusable(what) from err
            return _Received(told.or_failed(what, retryable=True))
        if response.status_code == httpx.codes.OK and response.headers.get("content-type") == LINES:
            for line in response.content.splitlines():
                told.read(line)
            if told.problem is None:
                return _Received(told.or_failed("a damaged response", retryable=True))
            response = told.problem
        if response.status_code == httpx.codes.OK:
            answers = whole_answers(response, images, parts, self._demand_same)
            return _Received(answers or all_failed(images, parts, "a damaged response", retryable=True))
        what = problem_of(response) or f"HTTP {response.status_code}: {shown(response)}"
        if transport_retryable(response.status_code):
            return _Received(
                told.or_failed(what, retryable=True),
                retry_after_s(response.headers),
                busy=response.status_code == BUSY_CODE,
            )
        if response.status_code not in REJECTED_CODES:
            raise self._refused(response)
        if len(images) == 1:
            try:
                await self.info()  # another service may refuse what the one before would have answered
            except ServiceUnfitError:
                raise
            except ServiceError as err:
                return _Received(all_failed(images, parts, err.what, retryable=True))
            return _Received(told.or_failed(what, retryable=False))
        alone = [  # one image may be the reason for all
            await self._once([image], parts, lambda _, answer, place=place: answered(place, answer))  # type: ignore[misc]
            for place, image in enumerate(images)
        ]
        asked = [one.asked_s for one in alone if one.asked_s is not None]
        return _Received(
            [one.answers[0] for one in alone], max(asked, default=None), busy=any(one.busy for one in alone)
        )

    async def _get(self, path: str, timeout_s: float = ANSWER_S) -> bytes:
        try:
            response = await self._http.get(path, timeout=timeout_s, extensions={MOST_BYTES: MOST})
        except httpx.HTTPError as err:
            raise self._unusable(f"{type(err).__name__}: {err}") from err
        if response.status_code != httpx.codes.OK:
            raise self._refused(response)
        return response.content

    def _refused(self, response: httpx.Response) -> ServiceError:
        kind = ServiceUnfitError if response.status_code == UNFIT_CODE else ServiceError
        return self._unusable(f"HTTP {response.status_code}: {problem_of(response) or shown(response)}", kind)

    def _unusable(self, what: str, kind: type[ServiceError] = ServiceError) -> ServiceError:
        fix = "see the service's log and GET /readyz; for a wrong key set LABELER_API_KEY"
        return kind(f"the labelling service cannot be used: {what}", path=self._place, fix=fix)


def client_of(
    settings: Settings | None, url: str | None, api_key: SecretStr | None, connections: int, attempts: int
) -> GroundingClient:
    """The client of a running service, or without a URL of an engine in this process. Raises ConfigError."""
    if url:
        return HttpClient(url, api_key, connections=connections, attempts=attempts)
    return InProcessClient(settings or load_settings(), connections=connections, attempts=attempts)


def _unusable_engine(err: EngineError) -> ServiceError:
    kind = ServiceUnfitError if isinstance(err, EngineUnfitError) else ServiceError
    return kind(f"the engine cannot be used: {err.what}", path=err.path, fix=err.fix)


def _checked(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError("the address of the labelling service is not an HTTP URL", fix="use http://host:port")
    return parsed


@asynccontextmanager
async def saying(line: Callable[[], str]) -> AsyncIterator[None]:
    """Inside it a line appears in the log every WAIT_LINE_S."""

    async def say() -> None:
        while True:
            await asyncio.sleep(WAIT_LINE_S)
            log.warning(line())

    task = asyncio.create_task(say())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
