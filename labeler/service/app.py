"""The labelling service as an application factory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from labeler.grounding.engine import Engine
from labeler.service import problems, routes
from labeler.service.callers import CallerCheck
from labeler.service.grounding_service import GroundingService, limit_image_threads
from labeler.service.logs import RequestLog
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

    # No pages: FastAPI's load their scripts from another host. No redirects: they repeat the Host they are given.
    app = FastAPI(
        title="Body-part labeler",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(
        CallerCheck,
        host=settings.host,
        allowed_hosts=settings.allowed_hosts,
        add_name=", or add the name to LABELER_ALLOWED_HOSTS",
    )
    app.add_middleware(RequestLog, metrics=service.metrics)
    problems.install(app)
    app.include_router(routes.protected)
    app.include_router(routes.public)
    return app
