"""The HTTP interface: /v1/ground, /v1/models, /livez, /readyz, /metrics."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from labeler.service import api_models
from labeler.service.api_models import Alive, GroundResponse, ModelList, Problem, Ready
from labeler.service.grounding_service import GroundingService
from labeler.service.guarded import check_key, image_body
from labeler.service.request_body import read_batch

Answer = TypeVar("Answer")

CLIENT_GONE = 499  # for log and metrics: the client closed the connection


def _service(request: Request) -> GroundingService:
    service: GroundingService = request.app.state.service
    return service


async def demand_key(request: Request) -> None:  # async although it awaits nothing: FastAPI runs plain ones in a thread
    """Raises RequestError 401 unless the request carries the configured API key, if there is one."""
    check_key(request, _service(request).settings.api_key)


public = APIRouter(tags=["state"])  # without the key: what orchestrators probe
protected = APIRouter(dependencies=[Depends(demand_key)])

_BODY = image_body("comma-separated; all parts when absent", example=api_models.REQUEST)
_PROBLEM: dict[str, Any] = {"model": Problem, "content": {"application/json": {"example": api_models.PROBLEM}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"example": api_models.RESPONSE}}},
    **dict.fromkeys((400, 401, 408, 413, 415, 422, 424, 429, 502, 503, 504), _PROBLEM),
}


@protected.post(
    "/v1/ground", response_model=GroundResponse, responses=_RESPONSES, openapi_extra=_BODY, tags=["grounding"]
)
async def ground(request: Request) -> Response:
    """Part boxes of a batch of images: one answer per image, in order, each with its own status."""
    service = _service(request)
    with service.arrivals.one() as arrival:
        service.refuse_when_full()
        batch = await read_batch(request, service.settings, service.vocabulary.parts, arrival)
        request.state.images = len(batch.images)  # for the log
        with service.admitted():
            answers = await unless_gone(request, service.ground(batch.images, batch.parts))
    if answers is None:
        return Response(status_code=CLIENT_GONE)
    identity = service.engine.identity
    response = GroundResponse(
        engine=identity.engine,
        model=identity.model,
        prompt_version=identity.prompt_version,
        missing_parts=service.settings.missing_parts,
        second_look=service.settings.second_look,
        images=tuple(answers),
    )
    return Response(response.model_dump_json(), media_type="application/json")


async def unless_gone(request: Request, work: Awaitable[Answer]) -> Answer | None:
    """The result of `work`; None, with `work` cancelled, once the client has closed the connection.

    To be called when the body has been read: what is received after it is the end of the connection.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


@protected.get("/v1/models", tags=["grounding"])
async def models(request: Request) -> ModelList:
    """Engine, model and prompt version that answer, and the limits of a request."""
    return ModelList(data=(_service(request).info(),))


@protected.get("/metrics", response_class=Response, responses={401: {"model": Problem}}, tags=["state"])
async def metrics(request: Request) -> Response:
    """Requests, images, tokens, latencies and model servers in the text format of Prometheus."""
    return Response(_service(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


@public.get("/livez")
async def livez() -> Alive:
    """The process answers; says nothing about the engine."""
    return Alive()


@public.get("/readyz", responses={status: {"model": Problem} for status in (424, 429, 502, 503, 504)})
async def readyz(request: Request) -> Ready:
    """The engine can be asked, and the boxes of the calibration image were right."""
    return Ready(calibration_iou=await _service(request).recent_readiness())
