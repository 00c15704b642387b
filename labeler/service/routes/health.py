"""GET /livez, /readyz, /v1/models: is it up, can it work, who is it."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from labeler.grounding.answers import Problem, ServiceInfo
from labeler.service.auth import demand_key
from labeler.service.grounding_service import GroundingService

router = APIRouter(tags=["state"])

_PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (424, 502, 503, 504)}


class Alive(BaseModel):
    status: str = "alive"


class Ready(BaseModel):
    """`calibration_iou`: mean IoU in 0..1 of the answer to a drawn person with known boxes."""

    status: str = "ready"
    calibration_iou: float


class ModelList(BaseModel):
    data: tuple[ServiceInfo, ...]


@router.get("/livez")
async def livez() -> Alive:
    """The process answers; says nothing about the engine."""
    return Alive()


@router.get("/readyz", responses=_PROBLEMS)
async def readyz(request: Request) -> Ready:
    """The engine lists its model and has answered a calibration image with finite boxes."""
    service: GroundingService = request.app.state.service
    return Ready(calibration_iou=await service.readiness())


@router.get("/v1/models", dependencies=[Depends(demand_key)])
async def models(request: Request) -> ModelList:
    """The engine, model and prompt that answer, and the limits of a request."""
    service: GroundingService = request.app.state.service
    return ModelList(data=(service.info(),))
