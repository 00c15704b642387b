"""The optional API key."""

import secrets

from fastapi import Request

from labeler.service.grounding_service import GroundingService
from labeler.service.problems import RequestError


async def demand_key(request: Request) -> None:  # a plain function would be called in a thread, at its price
    """Raises RequestError 401 unless the request carries the configured key; without one everybody may ask."""
    service: GroundingService = request.app.state.service
    key = service.settings.api_key
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    known = key.get_secret_value().encode()
    if not secrets.compare_digest(given.strip().encode(), known) or scheme.lower() != "bearer":
        raise RequestError(
            401,
            "no valid API key",
            fix="send `Authorization: Bearer <LABELER_API_KEY of the service>`",
            headers={"WWW-Authenticate": "Bearer"},
        )
