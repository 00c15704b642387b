"""What grounding one image returns, and who returned it. All of it may come from a service that is not ours."""

import math
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from shared.geometry import Box
from shared.schemas import FINAL_STATUSES, LabelStatus

Count = Annotated[int, Field(ge=0, lt=2**31)]  # what a column of a label row holds


class Frozen(BaseModel):
    """Immutable, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PartAnswer(Frozen):
    """One part of one image. `box` is x_min, y_min, x_max, y_max in pixels of the image, only with status ok."""

    part: str
    status: LabelStatus
    box: tuple[float, float, float, float] | None = None
    score: float | None = Field(default=None, ge=0, le=1)
    agreement: float | None = Field(default=None, ge=0, le=1)  # IoU with the answer about the mirrored image
    flags: tuple[str, ...] = ()
    raw_box: tuple[float, ...] | None = None  # as the engine answered, in the image's `space`
    raw_text: str | None = None  # the answer, when it gave no box
    attempts: Count = 0

    @model_validator(mode="after")
    def _a_box_exactly_with_ok(self) -> Self:
        if (self.box is not None) != (self.status == LabelStatus.OK):
            raise ValueError(f"status {self.status} {'without' if self.box is None else 'with'} a box")
        if self.box is not None:
            x_min, y_min, x_max, y_max = self.box
            if not (all(map(math.isfinite, self.box)) and x_min < x_max and y_min < y_max):
                raise ValueError(f"{self.box} is not a valid box")
        return self


class ImageAnswer(Frozen):
    """All parts of one image; `image_id` = first 16 hex digits of the SHA-256 of its bytes."""

    image_id: str
    width: Count = 0  # pixels; 0 when no image could be decoded
    height: Count = 0
    space: str = "none"  # coordinate space of the raw boxes
    parts: Annotated[tuple[PartAnswer, ...], FailFast()]
    error: str = ""  # why there are no answers
    retryable: bool = False  # whether the same request may succeed later
    prompt_tokens: int = Field(default=0, ge=0, lt=2**40)
    completion_tokens: int = Field(default=0, ge=0, lt=2**40)

    @property
    def boxes(self) -> dict[str, Box]:
        """Boxes in pixels of the image by part; parts without a box are left out."""
        return {answer.part: Box(*answer.box) for answer in self.parts if answer.box}

    @property
    def statuses(self) -> dict[str, LabelStatus]:
        """Status of every part that was asked for."""
        return {answer.part: answer.status for answer in self.parts}

    @property
    def failure(self) -> LabelStatus | None:
        """Status of the first failed part; None when every part has a final answer."""
        return next((answer.status for answer in self.parts if answer.status not in FINAL_STATUSES), None)


# Common to all rows of a label run: an answer of another engine, model, prompt or rule belongs to another run.
BOUND_TO = ("engine", "model", "prompt_version", "parts", "missing_parts", "second_look")


class LabelSource(Frozen):
    """Where the labels of a run come from: engine, model and prompt, and the rules that add to one answer."""

    engine: str
    model: str
    prompt_version: str
    parts: tuple[str, ...] = Field(min_length=1)
    missing_parts: str = "absent"
    second_look: bool = False


class ServiceInfo(LabelSource):
    """What answers, and the limits of one request."""

    max_images: int = Field(ge=1)
    max_body_bytes: int = Field(ge=1)
    max_requests: int = Field(ge=1)
