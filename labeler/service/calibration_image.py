"""A drawn person with known part boxes: what a service asks its engine about before it says that it is ready."""

import io

from PIL import Image, ImageDraw

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


def mean_iou(boxes: dict[str, Box]) -> float:
    """Mean IoU of answered boxes (pixels of the drawn image) with the truth; a missing part counts 0."""
    return sum(iou(box, boxes[part]) if part in boxes else 0.0 for part, box in TRUTH.items()) / len(TRUTH)


def _inner(part: str) -> tuple[float, float, float, float]:
    box = TRUTH[part]
    return box.x_min, box.y_min, box.x_max - 1, box.y_max - 1  # Pillow draws its maxima too
