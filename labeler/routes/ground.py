"""POST /v1/ground: body-part boxes for a batch of images."""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from labeler.api_models import GroundRequest, GroundResponse, Problem
from labeler.request_body import read_batch
from labeler.security import demand_key
from labeler.service import GroundingService

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
            "application/json": {"schema": GroundRequest.model_json_schema()},
            "multipart/form-data": {"schema": _FORM},
        },
    }
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 408, 413, 415, 422, 429, 503, 504)
}


@router.post("/ground", response_model=GroundResponse, responses=_PROBLEMS, openapi_extra=_BODY)
async def ground(request: Request) -> Response:
    """One answer per image, in order. An image that cannot be read or answered says so in its own answer."""
    service: GroundingService = request.app.state.service
    with service.admitted():
        batch = await read_batch(request, service.settings)
        answer = await service.ground(batch.images, batch.parts)
    return Response(answer.model_dump_json(), media_type="application/json")
