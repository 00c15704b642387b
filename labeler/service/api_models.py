"""JSON bodies of the HTTP interface, with the examples that its OpenAPI page shows."""

import base64
import binascii
from typing import Annotated, Any

from pydantic import EncodedBytes, EncoderProtocol, FailFast, Field, StringConstraints
from pydantic_core import PydanticCustomError

from labeler.grounding.answers import Frozen, ImageAnswer, ServiceInfo

Part = Annotated[str, StringConstraints(min_length=1, max_length=40)]


class StrictBase64(EncoderProtocol):
    """Standard base64; characters outside its alphabet are an error, not skipped."""

    @classmethod
    def decode(cls, data: bytes) -> bytes:
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error as err:
            raise PydanticCustomError("base64_decode", "not base64") from err

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return base64.b64encode(value)

    @classmethod
    def get_json_format(cls) -> str:
        return "base64"


Base64Image = Annotated[bytes, EncodedBytes(encoder=StrictBase64)]


class GroundRequest(Frozen):
    """Images as base64 of their file bytes, never paths or URLs. Without `parts`: all parts of the vocabulary."""

    images: tuple[Base64Image, ...] = Field(min_length=1)
    parts: tuple[Part, ...] | None = Field(default=None, min_length=1)


class Answerer(Frozen):
    """Who answered by which rules: the first line of a response of lines."""

    engine: str
    model: str
    prompt_version: str
    missing_parts: str = "absent"
    second_look: bool = False


class GroundResponse(Answerer):
    """One answer per image of the request, in its order, and who answered by which rules."""

    images: Annotated[tuple[ImageAnswer, ...], FailFast()]


class Problem(Frozen):
    """Body of every error response."""

    error: str
    fix: str
    request_id: str


class ImageLine(Frozen):
    """One line of a response of lines: the answer about the image of the request that has this index, from 0."""

    index: int = Field(ge=0)
    image: ImageAnswer


class ProblemLine(Problem):
    """The last line where no more images are answered: what a response without any answer would have been."""

    status: int = Field(ge=400, le=599)
    retry_after: str | None = Field(default=None, pattern="^[ -~]{0,64}$")  # the header of that name


class Alive(Frozen):
    status: str = "alive"


class Ready(Frozen):
    """`calibration_iou`: mean IoU in 0..1 of the answer about a drawn person with known boxes."""

    status: str = "ready"
    calibration_iou: float = Field(ge=0, le=1)


class ModelList(Frozen):
    data: Annotated[tuple[ServiceInfo, ...], FailFast()]


_GREY_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAQCAAAAAAO4WGhAAAAEUlEQVR42mNsYIAAJoZBwQAAURAAoGlIcOMAAAAASUVORK5CYII="

REQUEST: dict[str, Any] = {"images": [_GREY_PNG], "parts": ["head", "legs"]}

RESPONSE: dict[str, Any] = {
    "engine": "vllm_server",
    "model": "Qwen/Qwen2.5-VL-7B-Instruct",
    "prompt_version": "joint-0d1e2f3a",
    "missing_parts": "absent",
    "second_look": False,
    "images": [
        {
            "image_id": "c0cc66f780e10b8b",
            "width": 64,
            "height": 128,
            "space": "sent_pixels@280x560",
            "parts": [
                {
                    "part": "head",
                    "status": "ok",
                    "box": [22.9, 5.0, 42.1, 27.4],
                    "score": 0.93,
                    "raw_box": [100, 22, 184, 120],
                    "attempts": 1,
                },
                {"part": "legs", "status": "absent", "attempts": 1},
            ],
            "prompt_tokens": 318,
            "completion_tokens": 34,
        }
    ],
}

PROBLEM: dict[str, Any] = {
    "error": "32 requests are in flight",
    "fix": "retry after the seconds in Retry-After",
    "request_id": "4b0f3a0c6f0e4f6c8f0d2b1a9e8c7d6f",
}
