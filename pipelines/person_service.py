"""A trained run as an HTTP service: /v1/embed, /v1/compare, /v1/search, beside /livez, /readyz and /metrics.

It stands here because it needs both halves: the model of `reid`, which knows no web framework, and the guards of the
labeler's service (callers, key, connections, bodies, decoding limits), of which there is to be one implementation. Its
settings are the labeler's LABELER_* variables, as far as they concern a service. Clients send image bytes, never a path
or an address; a gallery is chosen when the service starts.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, Counter
from pydantic import BaseModel
from torch import Tensor

from labeler.grounding.decoding import ImageLimits, PixelBudget, decoded
from labeler.service.api_models import Problem
from labeler.service.arrivals import Arrivals, BusyError
from labeler.service.grounding_service import BODIES, limit_image_threads
from labeler.service.guarded import check_key, guarded_app, image_body
from labeler.service.metrics import RequestMetrics
from labeler.service.problems import RequestError, problem
from labeler.service.request_body import read_batch
from labeler.service.routes import CLIENT_GONE, unless_gone
from labeler.settings import Settings
from pipelines.embed import FalseAcceptRate
from reid.evaluation.calibration import Calibration
from reid.inference.embeddings import EmbeddingStore
from reid.inference.encoder import PersonEncoder
from reid.inference.similarity import Comparison, exact_similarities
from reid.retrieval.approximate import ApproximateSearch, read_record
from reid.retrieval.search import Found, exact_search
from shared.errors import DataError, UsageError
from shared.images import UnreadableImageError, image_id_of
from shared.object_storage import StorageError

log = logging.getLogger(__name__)

MAX_TOP = 1000
EXACT_ROWS = 1_000_000
SHOWN = ("image_id", "path", "dataset", "identity", "camera", "frame", "time_s", "track")
Answer = TypeVar("Answer")


class Embedded(BaseModel):
    """One image. feature: L2-normalised; visibility: part -> 0..1; both None where `error` says why."""

    image_id: str
    feature: list[float] | None = None
    visibility: dict[str, float] | None = None
    error: str | None = None


class EmbedResponse(BaseModel):
    model_hash: str
    feature_dim: int
    images: list[Embedded]


class CompareResponse(BaseModel):
    """similarity: -1..1 over the parts that both images show; probability: None without a calibration."""

    model_hash: str
    similarity: float
    probability: float | None = None
    same_person: bool | None = None
    false_accepts: str | None = None


class Hit(BaseModel):
    rank: int
    similarity: float
    probability: float | None = None
    same_person: bool | None = None
    image_id: str
    path: str
    dataset: str | None = None
    identity: str | None = None
    camera: str | None = None
    frame: int | None = None
    time_s: float | None = None
    track: int | None = None


class SearchResponse(BaseModel):
    """One list per image of the request. unknown: nobody is near enough; None without a calibration."""

    model_hash: str
    results: list[list[Hit]]
    unknown: list[bool | None]


class _Metrics(RequestMetrics):
    def __init__(self) -> None:
        super().__init__("dgreid")
        self.images = Counter("dgreid_images", "Images by outcome", ["status"], registry=self.registry)


class PersonService:
    """The model, the gallery and the limits. The model and searches run one at a time, in a thread of their own."""

    def __init__(
        self,
        settings: Settings,
        encoder: PersonEncoder,
        store: EmbeddingStore | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.settings, self.encoder, self.store, self.calibration = settings, encoder, store, calibration
        self.metrics = _Metrics()
        self.arrivals = Arrivals(BODIES * settings.max_body_bytes)
        self._requests = 0
        self._work = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._limits = ImageLimits(settings.max_pixels, settings.max_side, PixelBudget(settings.max_pixels_in_work))
        self._images = asyncio.Semaphore(settings.max_images_in_work)
        self._near: ApproximateSearch | None = None
        if store is not None:
            store.require(encoder.model_hash)
            if len(store) > EXACT_ROWS and (record := read_record(store)):
                self._near = ApproximateSearch.open(store, record)
            else:
                store.fetch()

    def refuse_when_full(self) -> None:
        if self._requests >= self.settings.max_requests:
            raise BusyError(f"{self._requests} requests are in flight", fix="retry after the seconds in Retry-After")

    async def answered(
        self, request: Request, work: Callable[[tuple[bytes, ...], str | None], Awaitable[Response]]
    ) -> Response:
        """Read a request's images and do `work` on them within all limits; no longer than the client waits for it."""
        with self.arrivals.one() as arrival:
            self.refuse_when_full()
            batch = await read_batch(request, self.settings, self.encoder.parts or ("whole",), arrival)
            named = batch.parts if len(batch.parts) < len(self.encoder.parts) or not self.encoder.parts else ()
            if len(named) > 1:
                raise RequestError(422, f"{len(named)} parts", fix="name one part, or none for the whole person")
            request.state.images = len(batch.images)
            self.refuse_when_full()
            self._requests += 1
            try:
                async with asyncio.timeout(self.settings.request_timeout_s):
                    found = await unless_gone(request, work(batch.images, named[0] if named else None))
                return Response(status_code=CLIENT_GONE) if found is None else found
            except TimeoutError as err:
                raise RequestError(504, "not answered in time", fix="send fewer images per request") from err
            finally:
                self._requests -= 1

    async def embedded(self, contents: tuple[bytes, ...]) -> tuple[list[Tensor | str], Any]:
        """Of every image its resized pixels, or why there are none; and the features and visibility of the others."""
        found = [await self._resized(content) for content in contents]
        good = [one for one in found if isinstance(one, Tensor)]
        for status, count in (("ok", len(good)), ("unreadable", len(found) - len(good))):
            self.metrics.images.labels(status).inc(count)
        if not good:
            return found, (np.zeros((0, self.encoder.feature_dim), np.float32), np.zeros((0, len(self.encoder.parts))))
        return found, await self._in_thread(partial(self.encoder.encode, torch.stack(good)))

    async def all_embedded(self, contents: tuple[bytes, ...]) -> tuple[Any, Any]:
        """Features and visibility of images that all must be readable."""
        found, (features, visibility) = await self.embedded(contents)
        for number, one in enumerate(found, 1):
            if isinstance(one, str):
                raise RequestError(422, f"image {number}: {one}", fix="send JPEG, PNG, WebP, TIFF, BMP or PPM files")
        return features, visibility

    async def search(self, features: Any, visibility: Any, top: int, part: str | None, cameras: list[str]) -> Found:
        store = self.store
        assert store is not None
        near = None if part is not None or cameras else self._near

        def work() -> Found:
            if near is not None:
                return near.search(features, visibility, top)
            allowed = np.isin(np.array(store.facts.column("camera").to_pylist(), object), cameras) if cameras else None
            comparison = Comparison(store.kind.parts, part)
            return exact_search(store, features, visibility, top, comparison=comparison, allowed=allowed)

        try:
            return await self._in_thread(work)
        except (DataError, StorageError) as err:  # of the gallery, which is not the client's
            log.error("%s", err)
            raise RequestError(503, "the gallery cannot be read", fix="start the service again") from err
        except UsageError as err:
            raise RequestError(422, err.what, fix=err.fix) from err

    async def _resized(self, content: bytes) -> Tensor | str:
        try:
            async with self._images, decoded(content, self._limits) as image:
                return await asyncio.to_thread(self.encoder.preprocessed, image)
        except UnreadableImageError as err:
            return err.reason

    async def _in_thread(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._work, work)

    def close(self) -> None:
        self._work.shutdown(cancel_futures=True)


def create_app(service: PersonService) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        limit_image_threads()
        try:
            yield
        finally:
            service.close()

    app = guarded_app("Person re-identification", service.settings, service.metrics, lifespan)
    app.state.service = service
    app.add_exception_handler(RequestValidationError, _bad_parameter)
    app.include_router(_protected)
    app.include_router(_public)
    return app


async def _bad_parameter(request: Request, err: Exception) -> Response:
    assert isinstance(err, RequestValidationError)
    told = "; ".join(f"{'.'.join(map(str, one['loc']))[:80]}: {one['msg']}" for one in err.errors()[:5])
    return problem(request, 422, told[:500], "see /openapi.json for the parameters")


def _service(request: Request) -> PersonService:
    found: PersonService = request.app.state.service
    return found


async def _demand_key(request: Request) -> None:
    check_key(request, _service(request).settings.api_key)


_public = APIRouter(tags=["state"])
_protected = APIRouter(dependencies=[Depends(_demand_key)])
_BODY = image_body("one part")
_PROBLEM: dict[str, Any] = {"model": Problem}
_RESPONSES: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 408, 413, 415, 422, 429, 503, 504), _PROBLEM)
FalseAccepts = Annotated[FalseAcceptRate, Query(description="false accept rate of the threshold for same_person")]


@_protected.post("/v1/embed", response_model=EmbedResponse, responses=_RESPONSES, openapi_extra=_BODY)
async def embed(request: Request) -> Response:
    """Features of a batch of crops; an image that cannot be read has its reason in its place."""
    service = _service(request)

    async def work(contents: tuple[bytes, ...], part: str | None) -> Response:
        found, (features, visibility) = await service.embedded(contents)
        rows = iter(zip(features.tolist(), visibility.tolist(), strict=True))
        images = []
        for content, one in zip(contents, found, strict=True):
            if isinstance(one, str):
                images.append(Embedded(image_id=image_id_of(content), error=one))
            else:
                feature, seen = next(rows)
                shown = dict(zip(service.encoder.parts, seen, strict=True))
                images.append(Embedded(image_id=image_id_of(content), feature=feature, visibility=shown))
        encoder = service.encoder
        return _json(EmbedResponse(model_hash=encoder.model_hash, feature_dim=encoder.feature_dim, images=images))

    return await service.answered(request, work)


@_protected.post("/v1/compare", response_model=CompareResponse, responses=_RESPONSES, openapi_extra=_BODY)
async def compare(request: Request, false_accepts: FalseAccepts = "1e-3") -> Response:
    """Whether two crops show one person."""
    service = _service(request)

    async def work(contents: tuple[bytes, ...], part: str | None) -> Response:
        if len(contents) != 2:
            raise RequestError(422, f"{len(contents)} images", fix="send two images")
        features, visibility = await service.all_embedded(contents)
        comparison = Comparison(service.encoder.parts, part)
        value = float(exact_similarities(features[0], visibility[0], features[1:], visibility[1:], comparison)[0])
        if np.isnan(value):
            raise RequestError(422, f"one of the images does not show the part {part!r}", fix="leave out `parts`")
        told = _judged(service.calibration if part is None else None, value, false_accepts)
        return _json(CompareResponse(model_hash=service.encoder.model_hash, similarity=value, **told))

    return await service.answered(request, work)


@_protected.post("/v1/search", response_model=SearchResponse, responses=_RESPONSES, openapi_extra=_BODY)
async def search(
    request: Request,
    top: Annotated[int, Query(ge=1, le=MAX_TOP)] = 20,
    camera: Annotated[list[str] | None, Query(max_length=64)] = None,
    false_accepts: FalseAccepts = "1e-3",
) -> Response:
    """The nearest images of the gallery for every crop of the request."""
    service = _service(request)
    if service.store is None:
        raise RequestError(422, "this service has no gallery", fix="start it with --gallery")
    store = service.store

    async def work(contents: tuple[bytes, ...], part: str | None) -> Response:
        features, visibility = await service.all_embedded(contents)
        found = await service.search(features, visibility, top, part, camera or [])
        calibration = service.calibration if part is None else None
        results: list[list[Hit]] = []
        for rows, values in zip(found.rows, found.similarities, strict=True):
            hits = rows[rows >= 0]
            facts = store.facts.select(list(SHOWN)).take(hits).to_pylist() if len(hits) else []
            results.append(
                [
                    Hit(rank=rank, similarity=value, **one, **_judged(calibration, value, false_accepts, hit=True))
                    for rank, (one, value) in enumerate(zip(facts, values.tolist(), strict=False), 1)
                ]
            )
        unknown = [None if calibration is None else not any(one.same_person for one in hits) for hits in results]
        return _json(SearchResponse(model_hash=service.encoder.model_hash, results=results, unknown=unknown))

    return await service.answered(request, work)


def _judged(calibration: Calibration | None, value: float, false_accepts: str, *, hit: bool = False) -> dict[str, Any]:
    if calibration is None:
        return {}
    try:
        same = value >= calibration.threshold(false_accepts)
    except UsageError as err:
        raise RequestError(422, err.what, fix=err.fix) from err
    told: dict[str, Any] = {"probability": float(calibration.probability(value)), "same_person": same}
    return told if hit else told | {"false_accepts": false_accepts}


@_protected.get("/metrics", response_class=Response, responses={401: {"model": Problem}})
async def metrics(request: Request) -> Response:
    """Requests, images and latencies in the text format of Prometheus."""
    return Response(_service(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


@_public.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@_public.get("/readyz")
async def readyz(request: Request) -> dict[str, str]:
    """The model is loaded: it is before the service listens."""
    return {"status": "ready", "model_hash": _service(request).encoder.model_hash}


def _json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")
