"""What grounding one image returns, and who returned it."""

from pydantic import BaseModel, ConfigDict, Field

from shared.geometry import Box
from shared.schemas import FINAL_STATUSES, LabelStatus


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
    attempts: int = Field(default=0, ge=0)


class ImageAnswer(Frozen):
    """All parts of one image; `image_id` = first 16 hex digits of the SHA-256 of its bytes."""

    image_id: str
    width: int = 0  # pixels; 0 when no image could be decoded
    height: int = 0
    space: str = "none"  # coordinate space of the raw boxes
    parts: tuple[PartAnswer, ...]
    error: str = ""  # why there are no answers
    retryable: bool = False  # whether the same request may succeed later
    prompt_tokens: int = 0
    completion_tokens: int = 0

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


class ServiceInfo(Frozen):
    """Engine, model and prompt that answer, and the limits of one request."""

    engine: str
    model: str
    prompt_version: str
    parts: tuple[str, ...]
    missing_parts: str = "absent"
    second_look: bool = False
    max_images: int
    max_body_bytes: int
    max_requests: int
