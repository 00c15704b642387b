"""Clients of the labelling service, with one interface: in this process without any server, or over HTTP."""

import asyncio
import base64
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import httpx
from pydantic import SecretStr, ValidationError

from labeler.grounding.answers import ImageAnswer, ServiceInfo
from labeler.grounding.engine import Engine, EngineAwayError, EngineError, EngineUnfitError
from labeler.grounding.ground import failed_answer
from labeler.grounding.retry import UNFIT_CODE, pause_s, retry_after_s, transport_retryable
from labeler.service.api_models import GroundResponse, ModelList, Problem, Ready
from labeler.service.grounding_service import GroundingService
from labeler.settings import Settings
from shared.errors import ConfigError, DgreidError
from shared.images import image_id_of
from shared.schemas import LabelStatus

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
READY_PAUSE_S = 2.0
REJECTED_CODES = (400, 413, 422)  # this request was refused; others may still be answered
SHOWN = 300  # characters of a response in an error


class ServiceError(DgreidError):
    """The labelling service cannot be used."""


class ServiceUnfitError(ServiceError):
    """Waiting does not help: its engine gives wrong boxes, or the URL is not that of a labelling service."""


class GroundingClient(ABC):
    """One labelling service; an async context manager that closes it.

    Args:
        connections: `ground` calls that the caller may have in flight at once.
        attempts: requests for one batch before its images count as failed. The pauses between the default of 8 add up
            to at least half a minute, longer than a service takes to restart.
    """

    def __init__(self, *, connections: int = 8, attempts: int = 8) -> None:
        self.connections, self._attempts = connections, attempts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @abstractmethod
    async def aclose(self) -> None: ...

    @abstractmethod
    async def info(self) -> ServiceInfo:
        """Engine, model, prompt version, parts and limits. Raises ServiceError."""

    async def wait_ready(self, timeout_s: float) -> float:
        """Wait until the service is ready; its mean IoU in 0..1 on the calibration image.

        Raises ServiceError after `timeout_s`, ServiceUnfitError at once when waiting does not help.
        """
        started = time.monotonic()
        while True:
            try:
                return await self._readiness()
            except ServiceUnfitError:
                raise
            except ServiceError as err:
                elapsed = time.monotonic() - started
                if elapsed + READY_PAUSE_S > timeout_s:
                    what = f"not ready after {elapsed:.0f} s: {err.what}"
                    raise ServiceError(what, path=err.path, fix=err.fix) from err
            await asyncio.sleep(READY_PAUSE_S)

    async def ground(self, contents: Sequence[bytes], parts: Sequence[str]) -> list[ImageAnswer]:
        """One answer per image file, in order. Images without an answer are sent again while that may help.

        Raises ServiceError when the service cannot be used at all; never for a failed image.
        """
        answers: dict[int, ImageAnswer] = {}
        pending = list(range(len(contents)))
        for failures in range(1, self._attempts + 1):
            received, asked_s = await self._once([contents[index] for index in pending], parts)
            for index, answer in zip(pending, received, strict=True):
                if index not in answers or answers[index].error or not answer.error:  # keep partial answers
                    answers[index] = answer
            pending = [index for index in pending if answers[index].retryable]
            if not pending:
                break
            if failures < self._attempts:
                chance = random.random()
                await asyncio.sleep(
                    pause_s(failures, chance, base_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S, asked_s=asked_s)
                )
        return [answers[index] for index in range(len(contents))]

    @abstractmethod
    async def _readiness(self) -> float:
        """Mean IoU in 0..1 on the calibration image. Raises ServiceError while the service is not ready."""

    @abstractmethod
    async def _once(self, images: Sequence[bytes], parts: Sequence[str]) -> tuple[list[ImageAnswer], float | None]:
        """One answer per image, and the seconds that the service asks to wait before a retry, if it does."""


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

    async def aclose(self) -> None:
        await self._service.aclose()

    async def info(self) -> ServiceInfo:
        return self._service.info()

    async def _readiness(self) -> float:
        try:
            return await self._service.readiness()
        except EngineError as err:
            raise _unusable_engine(err) from err

    async def _once(self, images: Sequence[bytes], parts: Sequence[str]) -> tuple[list[ImageAnswer], float | None]:
        try:
            return await self._service.ground(images, parts), None
        except EngineAwayError as err:
            return _all_failed(images, parts, err.what, retryable=True), err.retry_after_s
        except EngineError as err:
            raise _unusable_engine(err) from err


class HttpClient(GroundingClient):
    """Talks to a labelling service over HTTP.

    Args:
        url: root of the service.
        api_key: sent as `Authorization: Bearer <key>`.
        connections: also the size of the connection pool.
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
        self._http = httpx.AsyncClient(
            base_url=_checked(url),
            headers={"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {},
            # Callers keep at most `connections` requests in flight, so a PoolTimeout is a bug, not load.
            timeout=httpx.Timeout(connect=5, write=60, read=600, pool=30),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            transport=transport,
            trust_env=False,  # images must never pass through a proxy that the environment names
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def info(self) -> ServiceInfo:
        try:
            return ModelList.model_validate_json(await self._get("/v1/models")).data[0]
        except (ValidationError, IndexError) as err:
            raise self._unusable("its /v1/models is not that of a labelling service", ServiceUnfitError) from err

    async def _readiness(self) -> float:
        try:
            return Ready.model_validate_json(await self._get("/readyz")).calibration_iou
        except ValidationError as err:
            raise self._unusable("its /readyz is not that of a labelling service", ServiceUnfitError) from err

    async def _once(self, images: Sequence[bytes], parts: Sequence[str]) -> tuple[list[ImageAnswer], float | None]:
        request = {"images": [base64.b64encode(image).decode() for image in images], "parts": list(parts)}
        try:
            response = await self._http.post("/v1/ground", json=request)
        except httpx.HTTPError as err:
            what = f"{type(err).__name__}: {err}"
            if not transport_retryable(err):
                raise self._unusable(what) from err
            return _all_failed(images, parts, what, retryable=True), None
        if response.status_code == httpx.codes.OK:
            return _received(response, images) or _all_failed(images, parts, "a damaged response", retryable=True), None
        what = _problem(response) or f"HTTP {response.status_code}: {response.text[:SHOWN]}"
        if transport_retryable(response.status_code):
            return _all_failed(images, parts, what, retryable=True), retry_after_s(response.headers)
        if response.status_code not in REJECTED_CODES:
            raise self._refused(response)
        if len(images) == 1:
            return _all_failed(images, parts, what, retryable=False), None
        alone = [await self._once([image], parts) for image in images]  # one image may be the reason for all
        return [answers[0] for answers, _ in alone], None

    async def _get(self, path: str) -> bytes:
        try:
            response = await self._http.get(path)
        except httpx.HTTPError as err:
            raise self._unusable(f"{type(err).__name__}: {err}") from err
        if response.status_code != httpx.codes.OK:
            raise self._refused(response)
        return response.content

    def _refused(self, response: httpx.Response) -> ServiceError:
        kind = ServiceUnfitError if response.status_code == UNFIT_CODE else ServiceError
        return self._unusable(f"HTTP {response.status_code}: {_problem(response) or response.text[:SHOWN]}", kind)

    def _unusable(self, what: str, kind: type[ServiceError] = ServiceError) -> ServiceError:
        fix = "see the service's log and GET /readyz; for a wrong key set LABELER_API_KEY"
        return kind(f"the labelling service cannot be used: {what}", path=str(self._http.base_url), fix=fix)


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


def _received(response: httpx.Response, images: Sequence[bytes]) -> list[ImageAnswer] | None:
    """The answers, if there is exactly one for each image that was sent."""
    try:
        answers = GroundResponse.model_validate_json(response.content).images
    except ValidationError:
        return None
    fits = [answer.image_id for answer in answers] == [image_id_of(image) for image in images]
    return list(answers) if fits else None


def _all_failed(images: Sequence[bytes], parts: Sequence[str], what: str, *, retryable: bool) -> list[ImageAnswer]:
    return [
        failed_answer(image_id_of(image), parts, LabelStatus.ENGINE_ERROR, what, retryable=retryable)
        for image in images
    ]


def _problem(response: httpx.Response) -> str:
    """The error in a response of our service; empty for any other response, e.g. a proxy's."""
    try:
        return Problem.model_validate_json(response.content).error[:SHOWN]
    except ValidationError:
        return ""
