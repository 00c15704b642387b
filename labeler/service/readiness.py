"""The calibration image: a drawn person with known part boxes, asked about before a service calls itself ready."""

import io

from PIL import Image, ImageDraw

from labeler.grounding.answers import ImageAnswer
from labeler.grounding.engine import EngineUnfitError
from labeler.grounding.ground import FILLED
from shared.geometry import Box, iou
from shared.schemas import LabelStatus

WIDTH, HEIGHT = 64, 128  # pixels, the size of a Market-1501 crop
TRUTH: dict[str, Box] = {
    "head": Box(24, 6, 40, 26),
    "upper_body": Box(14, 26, 50, 68),
    "legs": Box(18, 68, 46, 122),
}

_BLIND = "for a model that cannot see drawings set LABELER_MIN_CALIBRATION_IOU=0"


def calibration_image() -> bytes:
    """PNG bytes of the drawn person."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (168, 176, 172))
    draw = ImageDraw.Draw(image)
    draw.ellipse(_inner("head"), fill=(214, 170, 140))
    draw.rectangle((24, 6, 39, 11), fill=(60, 40, 30))  # hair
    draw.rectangle(_inner("upper_body"), fill=(160, 40, 44))
    draw.rectangle((18, 68, 29, 121), fill=(38, 48, 90))
    draw.rectangle((34, 68, 45, 121), fill=(38, 48, 90))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def calibration_iou(answer: ImageAnswer, least: float) -> float:
    """Mean IoU in 0..1 of the answered boxes with the drawn ones; a missing part counts 0.

    Args:
        least: an IoU below it is an error. With 0 a model may also say that it sees no part in a drawing.

    Raises EngineUnfitError when the boxes are wrong, or there is no box for another reason.
    """
    boxes = {part.part: Box(*part.box) for part in answer.parts if part.box and FILLED not in part.flags}
    statuses = ", ".join(f"{part}: {status}" for part, status in answer.statuses.items())
    if not boxes and (least > 0 or set(answer.statuses.values()) != {LabelStatus.ABSENT}):
        raise EngineUnfitError(
            f"no box in the answer about the calibration image ({answer.error or statuses})",
            fix="check that LABELER_MODEL is a model that can ground, and LABELER_FAMILY its family; " + _BLIND,
        )
    by_part = {part: iou(box, boxes[part]) if part in boxes else 0.0 for part, box in TRUTH.items()}
    mean = sum(by_part.values()) / len(TRUTH)
    if mean < least:
        shown = ", ".join(f"{part} {value:.2f}" for part, value in by_part.items())
        raise EngineUnfitError(
            f"the boxes of the calibration image are wrong: mean IoU {mean:.2f} with the drawn person ({shown}), "
            f"the limit is {least:g}",
            fix="check that LABELER_FAMILY is the family of the served model; " + _BLIND,
        )
    return mean


def _inner(part: str) -> tuple[float, float, float, float]:
    box = TRUTH[part]
    return box.x_min, box.y_min, box.x_max - 1, box.y_max - 1  # Pillow's maxima are inclusive
