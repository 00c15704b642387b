"""POST /v1/ground: body-part boxes for a batch of images."""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from labeler.grounding.answers import GroundRequest, GroundResponse, Problem
from labeler.service import examples
from labeler.service.auth import demand_key
from labeler.service.grounding_service import GroundingService
from labeler.service.request_body import read_batch

router = APIRouter(prefix="/v1", tags=["grounding"], dependencies=[Depends(demand_key)])

_FORM = {
    "type": "object",
    "required": ["images"],
    "properties": {
        "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "parts": {"type": "string", "description": "comma-separated, all parts when absent"},
    },
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": GroundRequest.model_json_schema(), "example": examples.REQUEST},
            "multipart/form-data": {"schema": _FORM},
        },
    }
}
_REFUSAL: dict[str, Any] = {"model": Problem, "content": {"application/json": {"example": examples.PROBLEM}}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"example": examples.ANSWER}}},
    **dict.fromkeys((400, 401, 408, 413, 415, 422, 424, 429, 502, 503, 504), _REFUSAL),
}


@router.post("/ground", response_model=GroundResponse, responses=_ANSWERS, openapi_extra=_BODY)
async def ground(request: Request) -> Response:
    """One answer per image, in order. An image that cannot be read or answered says so in its own answer."""
    service: GroundingService = request.app.state.service
    with service.admitted():
        batch = await read_batch(request, service.settings, service.vocabulary.parts)
        request.state.images = len(batch.images)  # for the log
        answer = await service.ground(batch.images, batch.parts)
    return Response(answer.model_dump_json(), media_type="application/json")
