"""The labelling service as an application factory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from labeler.grounding.engine import Engine
from labeler.service import routes
from labeler.service.grounding_service import GroundingService, limit_image_threads
from labeler.service.guarded import guarded_app
from labeler.settings import Settings


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """The service over `engine`, by default the one that the settings name; it is closed with the application.

    Raises ConfigError when the settings do not fit the engine.
    """
    service = GroundingService(settings, engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        limit_image_threads()
        async with service:
            yield

    app = guarded_app("Body-part labeler", settings, service.metrics, lifespan)
    app.state.service = service
    app.include_router(routes.protected)
    app.include_router(routes.public)
    return app
