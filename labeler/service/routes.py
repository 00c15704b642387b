"""The HTTP interface: /v1/ground, /v1/models, /livez, /readyz, /metrics."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from labeler.engines.bounded_http import LINES
from labeler.grounding.answers import ImageAnswer
from labeler.service import api_models
from labeler.service.api_models import (
    Alive,
    Answerer,
    GroundResponse,
    ImageLine,
    ModelList,
    Problem,
    ProblemLine,
    Ready,
)
from labeler.service.grounding_service import GroundingService
from labeler.service.guarded import check_key, image_body
from labeler.service.problems import response_to
from labeler.service.request_body import Batch, read_batch

Answer = TypeVar("Answer")

LINES_S = 0.25  # answers that are there within this time are sent together
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
    200: {"content": {"application/json": {"example": api_models.RESPONSE}, LINES: {"schema": {"type": "string"}}}},
    **dict.fromkeys((400, 401, 408, 413, 415, 422, 424, 429, 502, 503, 504), _PROBLEM),
}


@protected.post(
    "/v1/ground", response_model=GroundResponse, responses=_RESPONSES, openapi_extra=_BODY, tags=["grounding"]
)
async def ground(request: Request) -> Response:
    """Part boxes of a batch of images: one answer per image, in order, each with its own status.

    With `Accept: application/x-ndjson` each answer is sent as soon as it is there, as a line of JSON: first who
    answers, then `{"index": ..., "image": ...}` in any order; a line with `error` and `status` ends it early.
    """
    service = _service(request)
    if LINES in request.headers.get("accept", ""):
        return _AnswerLines(request, service)
    async with _asked(request, service) as batch:
        answers = await unless_gone(request, service.ground(batch.images, batch.parts))
    if answers is None:
        return Response(status_code=CLIENT_GONE)
    response = GroundResponse(**_answerer(service).model_dump(), images=tuple(answers))
    return Response(response.model_dump_json(), media_type="application/json")


@asynccontextmanager
async def _asked(request: Request, service: GroundingService) -> AsyncIterator[Batch]:
    """The images of a request, which has a place in the service for as long."""
    with service.arrivals.one() as arrival:
        service.refuse_when_full()
        batch = await read_batch(request, service.settings, service.vocabulary.parts, arrival)
        request.state.images = len(batch.images)  # for the log
        with service.admitted():
            yield batch


def _answerer(service: GroundingService) -> Answerer:
    identity = service.engine.identity
    return Answerer(
        engine=identity.engine,
        model=identity.model,
        prompt_version=identity.prompt_version,
        missing_parts=service.settings.missing_parts,
        second_look=service.settings.second_look,
    )


class _AnswerLines(Response):
    """Grounds the images of a request and sends each answer when it is there, gathered for LINES_S."""

    def __init__(self, request: Request, service: GroundingService) -> None:
        super().__init__(media_type=LINES)
        self._request, self._service = request, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        said: set[int] = set()
        lines: list[bytes] = [_line(_answerer(self._service))]
        begun = False

        def answered(index: int, answer: ImageAnswer) -> None:
            said.add(index)
            lines.append(_line(ImageLine(index=index, image=answer)))

        async def say(*, more: bool) -> None:
            nonlocal begun
            if more and not said:
                return
            body = b"".join(lines)
            lines.clear()
            if not begun:
                begun = True
                length = () if more else ((b"content-length", str(len(body)).encode()),)
                headers = [(b"content-type", LINES.encode()), *length]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            if body or not more:
                await send({"type": "http.response.body", "body": body, "more_body": more})

        async with _asked(self._request, self._service) as batch:
            work = self._service.ground(batch.images, batch.parts, answered)
            try:
                answers = await unless_gone(self._request, work, lambda: say(more=True))
            except Exception as err:
                if not begun:
                    raise
                told = response_to(self._request, err)
                problem = json.loads(bytes(told.body))
                lines.append(
                    _line(ProblemLine(status=told.status_code, retry_after=told.headers.get("retry-after"), **problem))
                )
            else:
                if answers is None:
                    if not begun:
                        await Response(status_code=CLIENT_GONE)(scope, receive, send)
                    return
                for index, answer in enumerate(answers):
                    if index not in said:  # nobody answered about it
                        answered(index, answer)
        await say(more=False)


def _line(model: BaseModel) -> bytes:
    return model.model_dump_json().encode() + b"\n"


async def unless_gone(
    request: Request, work: Awaitable[Answer], meanwhile: Callable[[], Awaitable[None]] | None = None
) -> Answer | None:
    """The result of `work`; None, with `work` cancelled, once the client has closed the connection.

    To be called when the body has been read: what is received after it is the end of the connection.

    Args:
        meanwhile: done every LINES_S.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        while True:
            done, _ = await asyncio.wait(
                {working, leaving}, timeout=LINES_S if meanwhile else None, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                break
            if meanwhile:
                await meanwhile()
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
