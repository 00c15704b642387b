"""What every service of this project has: checks of caller and key, request ids, one log line and counters of every
request, errors as JSON with what and fix, and bodies of images."""

import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request
from pydantic import SecretStr

from labeler.service import problems
from labeler.service.api_models import GroundRequest
from labeler.service.callers import CallerCheck
from labeler.service.logs import RequestLog
from labeler.service.metrics import RequestMetrics
from labeler.service.problems import RequestError
from labeler.settings import Settings

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def guarded_app(title: str, settings: Settings, metrics: RequestMetrics, lifespan: Lifespan) -> FastAPI:
    # No pages: FastAPI's load their scripts from another host. No redirects: they repeat the Host they are given.
    app = FastAPI(
        title=title, version="1", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )  # fmt: skip
    app.add_middleware(
        CallerCheck,
        host=settings.host,
        allowed_hosts=settings.allowed_hosts,
        add_name=", or add the name to LABELER_ALLOWED_HOSTS",
    )
    app.add_middleware(RequestLog, metrics=metrics)
    problems.install(app)
    return app


def check_key(request: Request, key: SecretStr | None) -> None:
    """Raises RequestError 401 unless the request carries `key`, if there is one."""
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


def image_body(parts: str, **json_example: Any) -> dict[str, Any]:
    """OpenAPI's description of a request with images, in both forms; `parts` says what that field is for."""
    form = {
        "type": "object",
        "required": ["images"],
        "properties": {
            "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
            "parts": {"type": "string", "description": parts},
        },
    }
    content = {
        "application/json": {"schema": GroundRequest.model_json_schema(), **json_example},
        "multipart/form-data": {"schema": form},
    }
    return {"requestBody": {"required": True, "content": content}}
