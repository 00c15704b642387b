"""Every error response has one shape: what happened, what to do, which request."""

import logging
import math
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from labeler.grounding.engine import EngineDownError, EngineError, EngineSlowError, EngineUnfitError
from labeler.grounding.retry import LONGEST_ASKED_S, UNFIT_CODE
from labeler.service.api_models import Problem
from labeler.service.arrivals import BusyError
from shared.errors import DgreidError

log = logging.getLogger(__name__)

RETRY_AFTER_S = 2


class RequestError(DgreidError):
    """The request cannot be served as it is; `status` is the HTTP status code."""

    def __init__(self, status: int, what: str, *, fix: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(what, fix=fix)
        self.status, self.headers = status, dict(headers or {})


def install(app: FastAPI) -> None:
    """Turn our errors, the framework's and unexpected ones into Problem responses."""
    app.add_exception_handler(DgreidError, _expected)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(Exception, _unexpected)


async def _expected(request: Request, err: Exception) -> JSONResponse:
    return response_to(request, err)


def response_to(request: Request, err: Exception) -> JSONResponse:
    """The response where a request ends with this error."""
    match err:
        case RequestError():
            return problem(request, err.status, err.what, err.fix, err.headers)
        case BusyError():
            return problem(request, 429, err.what, err.fix, {"Retry-After": str(RETRY_AFTER_S)})
        case EngineSlowError() | EngineDownError():
            asked_s = min(err.retry_after_s or 0.0, LONGEST_ASKED_S)  # what the model server asks for is passed on
            headers = {"Retry-After": str(max(RETRY_AFTER_S, math.ceil(asked_s)))}
            return problem(request, 504 if isinstance(err, EngineSlowError) else 503, err.what, err.fix, headers)
        case EngineUnfitError():
            return problem(request, UNFIT_CODE, err.what, err.fix)
        case EngineError():
            return problem(request, 502, err.what, err.fix)
        case _:
            return _unknown(request, err)


async def _framework(request: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, HTTPException)
    return problem(
        request,
        err.status_code,
        str(err.detail),
        "see /openapi.json for the requests that this service serves",
        err.headers,
    )


async def _unexpected(request: Request, err: Exception) -> JSONResponse:
    return _unknown(request, err)


def _unknown(request: Request, err: Exception) -> JSONResponse:
    log.error("request %s failed", request.state.request_id, exc_info=err)
    return problem(request, 500, "unexpected failure of the service", "see its log for this request id")


def problem(
    request: Request, status: int, what: str, fix: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The response that every error has."""
    request_id = getattr(request.state, "request_id", "")
    body = Problem(error=what, fix=fix, request_id=request_id)
    return JSONResponse(body.model_dump(), status, {**(headers or {}), "X-Request-ID": request_id})
