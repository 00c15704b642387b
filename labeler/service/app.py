"""The labelling service as an application factory."""

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI

from labeler.engines.factory import build_engine
from labeler.grounding.engine import Engine
from labeler.service import problems
from labeler.service.grounding_service import GroundingService
from labeler.service.observation import Observation
from labeler.service.request_ids import RequestIds
from labeler.service.routes import ground, health, metrics
from labeler.settings import Settings


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """The service over `engine`, or over the engine that the settings name; it is closed with the application.

    Raises ConfigError when the settings do not fit the engine.
    """
    service = GroundingService(settings, engine or build_engine(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # As many threads as cores: of images that come together the first is ready, and asked about, before the last is
        # begun. With more of them all would be ready at the same late moment, and the model would wait until then.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_cores(), thread_name_prefix="images"))
        try:
            yield
        finally:
            await service.engine.close()

    app = FastAPI(title="Body-part labeler", version="1", lifespan=lifespan)
    app.state.service = service
    app.add_middleware(Observation, metrics=service.metrics)
    app.add_middleware(RequestIds)  # around the observation, whose log line carries the id
    problems.install(app)
    app.include_router(ground.router)
    app.include_router(health.router)
    app.include_router(metrics.router)
    return app


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
