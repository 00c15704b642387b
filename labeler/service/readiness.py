"""The calibration image: a drawn person with known part boxes, asked about before a service calls itself ready."""

import io

from PIL import Image, ImageDraw

from labeler.grounding.answers import ImageAnswer
from labeler.grounding.engine import EngineError
from labeler.grounding.ground import FILLED
from shared.geometry import Box, iou

WIDTH, HEIGHT = 64, 128  # pixels, the size of a Market-1501 crop
TRUTH: dict[str, Box] = {
    "head": Box(24, 6, 40, 26),
    "upper_body": Box(14, 26, 50, 68),
    "legs": Box(18, 68, 46, 122),
}


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


def calibration_iou(answer: ImageAnswer) -> float:
    """Mean IoU in 0..1 of the answered boxes with the drawn ones; a missing part counts 0.

    Raises EngineError when the engine itself gave no finite box.
    """
    boxes = {part.part: Box(*part.box) for part in answer.parts if part.box and FILLED not in part.flags}
    if not boxes:
        statuses = ", ".join(f"{part}: {status}" for part, status in answer.statuses.items())
        raise EngineError(
            f"no box in the answer about the calibration image ({answer.error or statuses})",
            fix="check that LABELER_MODEL is a model that can ground, and LABELER_FAMILY its family",
        )
    return sum(iou(box, boxes[part]) if part in boxes else 0.0 for part, box in TRUTH.items()) / len(TRUTH)


def _inner(part: str) -> tuple[float, float, float, float]:
    box = TRUTH[part]
    return box.x_min, box.y_min, box.x_max - 1, box.y_max - 1  # Pillow's maxima are inclusive
