"""Talking to the labelling service: over the network, or embedded in this process without any server."""

import asyncio
import base64
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from pydantic import SecretStr, ValidationError

from labeler.grounding.answers import GroundResponse, ImageAnswer, ServiceInfo
from labeler.grounding.engine import Engine
from labeler.grounding.ground import failed_answer
from labeler.grounding.retry import UNFIT_CODE, pause_s, retry_after_s, transport_retryable
from labeler.service.app import create_app
from labeler.settings import Settings
from shared.errors import DgreidError
from shared.images import image_id_of
from shared.schemas import LabelStatus

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
PER_REQUEST = (400, 413, 422)  # refusals of this very request: another one may still be answered
EMBEDDED_URL = "http://embedded"


class ServiceError(DgreidError):
    """The labelling service cannot be used."""


class ServiceUnfitError(ServiceError):
    """Its engine answers wrongly; waiting does not help."""


class LabelerClient:
    """A client of one service.

    Args:
        http: its base URL is the service's root; at most `connections` requests run at once.
        connections: the size of the connection pool.
        transport_attempts: requests for one batch before its images count as failed; with the default the pauses add
            up to half a minute at least, which outlives a restarted server.
    """

    def __init__(self, http: httpx.AsyncClient, *, connections: int = 8, transport_attempts: int = 8) -> None:
        self._http, self.connections, self._attempts = http, connections, transport_attempts

    async def info(self) -> ServiceInfo:
        """Who answers. Raises ServiceError."""
        response = await self._get("/v1/models")
        try:
            return ServiceInfo.model_validate(response.json()["data"][0])
        except (ValueError, KeyError, IndexError, TypeError) as err:
            raise self._unusable(f"its /v1/models is none of ours: {response.text[:200]!r}") from err

    async def wait_ready(self, timeout_s: float, pause: float = 2.0) -> float:
        """Wait until /readyz says so; the mean IoU of its calibration. Raises ServiceError after `timeout_s`,
        or at once when the engine answers wrongly."""
        started = time.monotonic()
        while True:
            try:
                return float((await self._get("/readyz")).json()["calibration_iou"])
            except ServiceUnfitError:
                raise
            except ServiceError as err:
                elapsed = time.monotonic() - started
                if elapsed + pause > timeout_s:
                    raise self._unusable(f"not ready after {elapsed:.0f} s: {err.what}") from err
            except (ValueError, KeyError, TypeError) as err:
                raise self._unusable("its /readyz is none of ours") from err
            await asyncio.sleep(pause)

    async def ground(self, contents: Sequence[bytes], parts: Sequence[str]) -> list[ImageAnswer]:
        """One answer per image, in order. Images without an answer are sent again while that may help.

        Raises ServiceError when the service refuses us (key, another API); never for a failed image.
        """
        answers: dict[int, ImageAnswer] = {}
        pending = list(range(len(contents)))
        for failures in range(1, self._attempts + 1):
            received, asked_s = await self._once([contents[index] for index in pending], parts)
            for index, answer in zip(pending, received, strict=True):
                if index not in answers or not answer.error:  # no answer never replaces half of one
                    answers[index] = answer
            pending = [index for index in pending if answers[index].may_pass]
            if not pending:
                break
            if failures < self._attempts:
                pause = pause_s(
                    failures, random.random(), base_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S, asked_s=asked_s
                )
                await asyncio.sleep(pause)
        return [answers[index] for index in range(len(contents))]

    async def _once(self, images: Sequence[bytes], parts: Sequence[str]) -> tuple[list[ImageAnswer], float | None]:
        """One answer per image, and the seconds the service asks us to stay away, if it does."""
        try:
            response = await self._http.post("/v1/ground", json=_request(images, parts))
        except httpx.HTTPError as err:
            what = f"{type(err).__name__}: {err}"
            if not transport_retryable(err):
                raise self._unusable(what) from err
            return _all_failed(images, parts, what, may_pass=True), None
        if response.status_code == httpx.codes.OK:
            return _received(response, images) or _all_failed(images, parts, "a damaged answer", may_pass=True), None
        what = f"{response.status_code}: {_reason(response)}"
        if transport_retryable(response.status_code):
            return _all_failed(images, parts, what, may_pass=True), retry_after_s(response.headers)
        if response.status_code not in PER_REQUEST:
            raise self._unusable(what)
        if len(images) == 1:
            return _all_failed(images, parts, what, may_pass=False), None
        alone = [await self._once([image], parts) for image in images]  # one image may be to blame for all
        return [answers[0] for answers, _ in alone], None

    async def _get(self, path: str) -> httpx.Response:
        try:
            response = await self._http.get(path)
        except httpx.HTTPError as err:
            raise self._unusable(f"{type(err).__name__}: {err}") from err
        if response.status_code != httpx.codes.OK:
            kind = ServiceUnfitError if response.status_code == UNFIT_CODE else ServiceError
            raise self._unusable(f"{response.status_code}: {_reason(response)}", kind)
        return response

    def _unusable(self, what: str, kind: type[ServiceError] = ServiceError) -> ServiceError:
        fix = "see the service's log and GET /readyz; a wrong key: set LABELER_API_KEY"
        return kind(f"the labelling service cannot be used: {what}", path=str(self._http.base_url), fix=fix)


@asynccontextmanager
async def embedded_client(
    settings: Settings, engine: Engine | None = None, *, connections: int = 8, transport_attempts: int = 8
) -> AsyncIterator[LabelerClient]:
    """A client of a service that lives in this process and ends with it. Raises ConfigError for unfit settings."""
    app = create_app(settings, engine)
    async with (
        app.router.lifespan_context(app),
        _http(EMBEDDED_URL, settings.api_key, connections, httpx.ASGITransport(app)) as http,
    ):
        yield LabelerClient(
            http, connections=min(connections, settings.max_requests), transport_attempts=transport_attempts
        )


@asynccontextmanager
async def remote_client(
    url: str, api_key: SecretStr | None = None, *, connections: int = 8, transport_attempts: int = 8
) -> AsyncIterator[LabelerClient]:
    """A client of the service at `url`."""
    async with _http(url, api_key, connections, None) as http:
        yield LabelerClient(http, connections=connections, transport_attempts=transport_attempts)


def _http(
    url: str, key: SecretStr | None, connections: int, transport: httpx.AsyncBaseTransport | None
) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
        # The annotator keeps no more requests in flight than there are connections: a PoolTimeout is a bug, not load.
        timeout=httpx.Timeout(connect=5, write=60, read=600, pool=30),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        transport=transport,
        trust_env=False,  # a proxy of the environment must never see the images
    )


def _request(images: Sequence[bytes], parts: Sequence[str]) -> dict[str, Any]:
    return {"images": [base64.b64encode(image).decode() for image in images], "parts": list(parts)}


def _received(response: httpx.Response, images: Sequence[bytes]) -> list[ImageAnswer] | None:
    """The answers, if there is exactly one for each image that was sent."""
    try:
        answers = GroundResponse.model_validate_json(response.content).images
    except ValidationError:
        return None
    fits = [answer.image_id for answer in answers] == [image_id_of(image) for image in images]
    return list(answers) if fits else None


def _all_failed(images: Sequence[bytes], parts: Sequence[str], what: str, *, may_pass: bool) -> list[ImageAnswer]:
    return [
        failed_answer(image_id_of(image), parts, LabelStatus.ENGINE_ERROR, what, may_pass=may_pass) for image in images
    ]


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return response.text[:300]
