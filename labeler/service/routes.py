"""The HTTP interface: /v1/ground, /v1/models, /livez, /readyz, /metrics."""

import secrets
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from labeler.service import api_models
from labeler.service.api_models import Alive, GroundRequest, GroundResponse, ModelList, Problem, Ready
from labeler.service.grounding_service import GroundingService
from labeler.service.problems import RequestError
from labeler.service.request_body import read_batch


def _service(request: Request) -> GroundingService:
    service: GroundingService = request.app.state.service
    return service


async def demand_key(request: Request) -> None:  # async although it awaits nothing: FastAPI runs plain ones in a thread
    """Raises RequestError 401 unless the request carries the configured API key, if there is one."""
    key = _service(request).settings.api_key
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    known = key.get_secret_value().encode()
    if not secrets.compare_digest(given.strip().encode(), known) or scheme.lower() != "bearer":
        raise RequestError(
            401,
            "missing or wrong API key",
            fix="send `Authorization: Bearer <LABELER_API_KEY of the service>`",
            headers={"WWW-Authenticate": "Bearer"},
        )


public = APIRouter(tags=["state"])  # without the key: what orchestrators probe
protected = APIRouter(dependencies=[Depends(demand_key)])

_FORM = {
    "type": "object",
    "required": ["images"],
    "properties": {
        "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "parts": {"type": "string", "description": "comma-separated; all parts when absent"},
    },
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": GroundRequest.model_json_schema(), "example": api_models.REQUEST},
            "multipart/form-data": {"schema": _FORM},
        },
    }
}
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
    with service.admitted():
        batch = await read_batch(request, service.settings, service.vocabulary.parts)
        request.state.images = len(batch.images)  # for the log
        answers = await service.ground(batch.images, batch.parts)
    identity = service.engine.identity
    response = GroundResponse(
        engine=identity.engine,
        model=identity.model,
        prompt_version=identity.prompt_version,
        images=tuple(answers),
    )
    return Response(response.model_dump_json(), media_type="application/json")


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


@public.get("/readyz", responses={status: {"model": Problem} for status in (424, 502, 503, 504)})
async def readyz(request: Request) -> Ready:
    """The engine can be asked and has answered the calibration image with at least one finite box."""
    return Ready(calibration_iou=await _service(request).readiness())
