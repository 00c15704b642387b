"""What goes over the wire: requests and answers of the labelling service."""

import base64
import binascii
from typing import Annotated

from pydantic import BaseModel, ConfigDict, EncodedBytes, EncoderProtocol, Field, StringConstraints
from pydantic_core import PydanticCustomError

from shared.schemas import LabelStatus

Part = Annotated[str, StringConstraints(min_length=1, max_length=40)]


class StrictBase64(EncoderProtocol):
    """Standard base64; a foreign character is an error, not skipped."""

    @classmethod
    def decode(cls, data: bytes) -> bytes:
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error as err:
            raise PydanticCustomError("base64_decode", "no base64") from err

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return base64.b64encode(value)

    @classmethod
    def get_json_format(cls) -> str:
        return "base64"


Base64Image = Annotated[bytes, EncodedBytes(encoder=StrictBase64)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GroundRequest(Frozen):
    """Images to ground, as base64 of their file bytes; never paths or URLs. Without `parts` all of the vocabulary."""

    images: tuple[Base64Image, ...] = Field(min_length=1)
    parts: tuple[Part, ...] | None = Field(default=None, min_length=1)


class PartAnswer(Frozen):
    """One part of one image. `box` is x_min, y_min, x_max, y_max in pixels of the image, only with status ok."""

    part: str
    status: LabelStatus
    box: tuple[float, float, float, float] | None = None
    score: float | None = Field(default=None, ge=0, le=1)
    agreement: float | None = Field(default=None, ge=0, le=1)  # of the second look with this answer
    flags: tuple[str, ...] = ()
    raw_box: tuple[float, ...] | None = None  # as the engine answered, in the image's `space`
    raw_text: str | None = None  # the answer, when it gave no box
    attempts: int = Field(default=0, ge=0)


class ImageAnswer(Frozen):
    """One image of the request, in its order; `image_id` = first 16 hex digits of the SHA-256 of its bytes."""

    image_id: str
    width: int = 0  # pixels; 0 when no image could be decoded
    height: int = 0
    space: str = "none"
    parts: tuple[PartAnswer, ...]
    error: str = ""  # why no part could be asked for or answered
    may_pass: bool = False  # whether the same request may bring more later
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ServiceInfo(Frozen):
    """Who answers, and what a request may hold."""

    engine: str
    model: str
    prompt_version: str
    parts: tuple[str, ...]
    missing_parts: str = "absent"
    second_look: bool = False
    max_images: int
    max_body_bytes: int
    max_requests: int


class GroundResponse(Frozen):
    engine: str
    model: str
    prompt_version: str
    images: tuple[ImageAnswer, ...]


class Problem(Frozen):
    """The body of every answer that is no success."""

    error: str
    fix: str
    request_id: str
