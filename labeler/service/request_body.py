"""Reading untrusted request bodies, JSON or multipart: size and time limits hold while the body arrives."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from labeler.service.api_models import GroundRequest
from labeler.service.arrivals import Arrival, Arrivals, too_much
from labeler.service.problems import RequestError
from labeler.settings import Settings

MAX_FORM_FIELDS = 32
MAX_FIELD_BYTES = 4096
MAX_OTHER_VALUES = 256  # of a JSON body, beside the images: parts and field names
SMALL_BODY = 256 * 1024  # bytes that are parsed in half a millisecond
SHOWN_FAULTS = 5
SHOWN_WORD = 40  # characters of what the client sent, in an error
SHOWN_TEXT = 500


@dataclass(frozen=True)
class Batch:
    """File bytes of the images, and the parts to ask for."""

    images: tuple[bytes, ...]
    parts: tuple[str, ...]


async def read_batch(
    request: Request, settings: Settings, known_parts: Sequence[str], arrival: Arrival | None = None
) -> Batch:
    """Images and parts of a JSON or multipart request; all `known_parts` when it names none.

    Args:
        arrival: counts the bytes; None: nobody does.

    Raises:
        RequestError: 408 too slow, 413 too large, 415 another encoding, 400 damaged, 422 with invalid content.
        BusyError: all requests together are too large.
    """
    arrival = arrival or Arrival(Arrivals(settings.max_body_bytes))
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    try:
        async with asyncio.timeout(settings.body_timeout_s) as arrival.deadline:
            if kind == "application/json":
                body = bytearray()
                async for chunk in _counted(request, settings.max_body_bytes, arrival):
                    body += chunk
            elif kind == "multipart/form-data":
                batch = await _from_multipart(request, settings, arrival)
            else:
                raise RequestError(
                    415,
                    f"content type {kind[:SHOWN_WORD]!r}",
                    fix="send application/json or multipart/form-data, see /openapi.json",
                )
        arrival.complete = True
    except ClientDisconnect as err:
        raise RequestError(400, "the request ended too early", fix="send it again") from err
    except TimeoutError as err:
        if arrival.evicted:
            raise too_much() from err
        raise RequestError(408, "the request did not arrive in time", fix="send fewer images per request") from err
    if kind == "application/json":
        if len(body) <= SMALL_BODY:
            batch = _from_json(body, settings.max_images)
        else:
            batch = await asyncio.to_thread(_from_json, body, settings.max_images)
    if len(batch.images) > settings.max_images:
        raise RequestError(
            422, f"{len(batch.images)} images", fix=f"send at most {settings.max_images} images per request"
        )
    if unknown := sorted(set(batch.parts) - set(known_parts)):
        shown = ", ".join(repr(part[:SHOWN_WORD]) for part in unknown[:SHOWN_FAULTS])
        more = f" and {len(unknown) - SHOWN_FAULTS} more" if len(unknown) > SHOWN_FAULTS else ""
        raise RequestError(422, f"unknown parts {shown}{more}", fix=f"known parts: {', '.join(known_parts)}")
    return Batch(batch.images, tuple(dict.fromkeys(batch.parts or known_parts)))


async def _counted(request: Request, limit: int, arrival: Arrival) -> AsyncGenerator[bytes, None]:
    """The body's chunks. Content-Length is trusted only when it already exceeds the limit."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > limit:
        raise _too_large(limit)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise _too_large(limit)
        arrival.grow(len(chunk))
        yield chunk


def _too_large(limit: int) -> RequestError:
    fix = f"send at most {limit} bytes per request (LABELER_MAX_BODY_BYTES)"
    return RequestError(413, f"the request has more than {limit} bytes", fix=fix)


def _from_json(body: bytearray, max_images: int) -> Batch:
    """Raises RequestError, before anything is built, for more values than a request can hold.

    JSON of 16 MB may hold 8 million values, which take gigabytes and minutes, with the interpreter's lock held: a
    thread would not help. Values are separated by commas, which base64 has none of, and nested ones end at depth 200.
    """
    limit = max_images + MAX_OTHER_VALUES
    if body.count(b",") > limit:
        raise RequestError(422, f"more than {limit} values", fix=f"send at most {max_images} images per request")
    try:
        asked = GroundRequest.model_validate_json(body)
    except ValidationError as err:
        faults = err.errors(include_url=False, include_input=False, include_context=False)
        status = 400 if any(fault["type"] == "json_invalid" for fault in faults) else 422
        shown = "; ".join(f"{_place(fault['loc'])}: {fault['msg']}" for fault in faults[:SHOWN_FAULTS])
        raise RequestError(
            status, shown[:SHOWN_TEXT], fix='send {"images": ["<base64>", ...], "parts": [...]}'
        ) from err
    return Batch(asked.images, asked.parts or ())


def _place(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(step)[:SHOWN_WORD] for step in loc) or "body"


async def _from_multipart(request: Request, settings: Settings, arrival: Arrival) -> Batch:
    parser = MultiPartParser(
        request.headers,
        _counted(request, settings.max_body_bytes, arrival),
        max_files=settings.max_images,
        max_fields=MAX_FORM_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    fix = "send files named `images` and, optionally, fields named `parts`"
    try:
        form = await parser.parse()
    except MultiPartException as err:
        raise RequestError(400, err.message[:SHOWN_TEXT], fix=fix) from err
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
