"""Reading untrusted request bodies, JSON or multipart: size and time limits hold while the body arrives."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from labeler.service.api_models import GroundRequest
from labeler.service.problems import RequestError
from labeler.settings import Settings

MAX_FORM_FIELDS = 32
MAX_FIELD_BYTES = 4096
SHOWN_FAULTS = 5


@dataclass(frozen=True)
class Batch:
    """File bytes of the images, and the parts to ask for."""

    images: tuple[bytes, ...]
    parts: tuple[str, ...]


async def read_batch(request: Request, settings: Settings, known_parts: Sequence[str]) -> Batch:
    """Images and parts of a JSON or multipart request; all `known_parts` when it names none.

    Raises RequestError: 408 too slow, 413 too large, 415 another encoding, 400 damaged, 422 with invalid content.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            if kind == "application/json":
                batch = _from_json(b"".join([chunk async for chunk in _counted(request, settings.max_body_bytes)]))
            elif kind == "multipart/form-data":
                batch = await _from_multipart(request, settings)
            else:
                raise RequestError(
                    415, f"content type {kind!r}", fix="send application/json or multipart/form-data, see /docs"
                )
    except TimeoutError as err:
        raise RequestError(408, "the request did not arrive in time", fix="send fewer images per request") from err
    if len(batch.images) > settings.max_images:
        raise RequestError(
            422, f"{len(batch.images)} images", fix=f"send at most {settings.max_images} images per request"
        )
    if unknown := sorted(set(batch.parts) - set(known_parts)):
        raise RequestError(422, f"unknown parts {unknown}", fix=f"known parts: {', '.join(known_parts)}")
    return Batch(batch.images, tuple(dict.fromkeys(batch.parts or known_parts)))


async def _counted(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks. Content-Length is trusted only when it already exceeds the limit."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > limit:
        raise _too_large(limit)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise _too_large(limit)
        yield chunk


def _too_large(limit: int) -> RequestError:
    fix = f"send at most {limit} bytes per request (LABELER_MAX_BODY_BYTES)"
    return RequestError(413, f"the request has more than {limit} bytes", fix=fix)


def _from_json(body: bytes) -> Batch:
    try:
        asked = GroundRequest.model_validate_json(body)
    except ValidationError as err:
        faults = err.errors(include_url=False, include_input=False, include_context=False)
        status = 400 if any(fault["type"] == "json_invalid" for fault in faults) else 422
        shown = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'body'}: {f['msg']}" for f in faults[:SHOWN_FAULTS])
        raise RequestError(status, shown[:500], fix='send {"images": ["<base64>", ...], "parts": [...]}') from err
    return Batch(asked.images, asked.parts or ())


async def _from_multipart(request: Request, settings: Settings) -> Batch:
    parser = MultiPartParser(
        request.headers,
        _counted(request, settings.max_body_bytes),
        max_files=settings.max_images,
        max_fields=MAX_FORM_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    fix = "send files named `images` and, optionally, fields named `parts`"
    try:
        form = await parser.parse()
    except MultiPartException as err:
        raise RequestError(400, err.message, fix=fix) from err
    except (KeyError, UnicodeDecodeError) as err:  # no boundary, or a header in no known encoding
        raise RequestError(400, "damaged multipart headers", fix=fix) from err
    try:
        images, parts = [], []
        for name, value in form.multi_items():
            if name == "images" and isinstance(value, UploadFile):
                images.append(await value.read())
            elif name == "parts" and isinstance(value, str):
                parts += [part.strip() for part in value.split(",") if part.strip()]
            else:
                raise RequestError(422, f"unexpected field {name[:40]!r}", fix=fix)
    finally:
        await form.close()
    if not images:
        raise RequestError(422, "no images", fix=fix)
    return Batch(tuple(images), tuple(parts))
