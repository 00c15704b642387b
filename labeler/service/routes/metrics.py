"""GET /metrics: counters for Prometheus."""

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from labeler.grounding.answers import Problem
from labeler.service.auth import demand_key
from labeler.service.grounding_service import GroundingService

router = APIRouter(tags=["state"], dependencies=[Depends(demand_key)])


@router.get("/metrics", response_class=Response, responses={401: {"model": Problem}})
async def metrics(request: Request) -> Response:
    """Requests, images, tokens, latencies and model servers in Prometheus' text format."""
    service: GroundingService = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
