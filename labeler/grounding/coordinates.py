"""From what the model saw to pixels of the original image, in one place.

Every family answers in its own space: Qwen2-VL, Qwen3-VL and CogVLM-grounding in thousandths of the image, Qwen2.5-VL
in pixels of the image *after* the server's resize to multiples of 28. That resize moves a box of a 64 x 128 crop by up
to a tenth of its size, so crops are brought to such multiples here, before they are sent, and the server has nothing
left to change.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.errors import ConfigError
from shared.geometry import Box, scaled

Space = Literal["sent_pixels", "thousandths"]
AnswerForm = Literal["json", "brackets"]  # one JSON object for any parts, or [[x0,y0,x1,y1]] for the one asked about

TARGET_PIXELS = 156_800  # 280 x 560: a 64 x 128 crop enlarged about 4.4 times, 200 image tokens at factor 28
MAX_ASPECT = 100.0  # the families' own resize refuses sides that differ by more than 200 times
ASPECT_CANDIDATES = 4  # widths tried, from the smallest that is large enough
SKEW = 0.03  # log of the axes' scales: with so little between them more tokens would buy nothing


@dataclass(frozen=True)
class ModelFamily:
    """How one family of models sees an image and answers with a box.

    Args:
        name: the value of LABELER_FAMILY.
        pattern: regular expression found in a served model's name, lower case.
        factor: both sides of the image it sees are multiples of this many pixels.
        space: what its coordinates count.
        min_pixels, max_pixels: area that its processor leaves unchanged. The upper limit is ours where the
            processor's own is higher: more tokens than that cost time and add no detail to a person crop.
        form: what it was trained to answer with.
        square: side of the square that every image is squeezed into; None when it keeps its shape.
    """

    name: str
    pattern: str
    factor: int
    space: Space
    min_pixels: int
    max_pixels: int
    form: AnswerForm = "json"
    square: int | None = None


# Factors and spaces: Wang et al. 2024 (Qwen2-VL), Bai et al. 2025 (Qwen2.5-VL, Qwen3-VL) and their processor files;
# Wang et al. 2023 (CogVLM: patches of 14 pixels of a 490 x 490 image, coordinates of three digits).
FAMILIES: dict[str, ModelFamily] = {
    family.name: family
    for family in (
        ModelFamily("qwen3-vl", r"qwen-?3-?vl", 32, "thousandths", 256 * 256, 1280 * 32 * 32),
        ModelFamily("qwen2.5-vl", r"qwen-?2[.-]?5-?vl", 28, "sent_pixels", 4 * 28 * 28, 1280 * 28 * 28),
        ModelFamily("qwen2-vl", r"qwen-?2-?vl", 28, "thousandths", 4 * 28 * 28, 1280 * 28 * 28),
        ModelFamily("cogvlm", r"cogvlm(?!-?2)", 14, "thousandths", 490 * 490, 490 * 490, "brackets", 490),
    )
}


def family_of(model: str, chosen: str | None = None) -> ModelFamily:
    """The family of a served model: `chosen` when given, else found in the model's name.

    Raises ConfigError, with the known families, when neither says which it is.
    """
    known = ", ".join(FAMILIES)
    if chosen:
        if chosen not in FAMILIES:
            raise ConfigError(f"unknown model family {chosen!r}", fix=f"set LABELER_FAMILY to one of: {known}")
        return FAMILIES[chosen]
    plain = re.sub(r"[\s_]+", "-", model.lower())
    for family in FAMILIES.values():
        if re.search(family.pattern, plain):
            return family
    raise ConfigError(
        f"the name {model!r} does not tell in which coordinates the model answers",
        fix=f"set LABELER_FAMILY to one of: {known}",
    )


@dataclass(frozen=True)
class Sent:
    """One image as it was sent, the space of the answer, and the original behind it (all sizes in pixels)."""

    image_width: int
    image_height: int
    sent_width: int
    sent_height: int
    space: Space

    @property
    def name(self) -> str:
        """What goes into a label row: the space and the size that the model saw, e.g. `sent_pixels@280x560`."""
        return f"{self.space}@{self.sent_width}x{self.sent_height}"

    @property
    def limits(self) -> tuple[float, float]:
        """The largest x and y of an answer that lies inside the image."""
        return (1000.0, 1000.0) if self.space == "thousandths" else (float(self.sent_width), float(self.sent_height))

    def to_image(self, box: Box) -> Box:
        """An answered box in pixels of the original image; neither ordered nor clipped."""
        x_limit, y_limit = self.limits
        return scaled(box, self.image_width / x_limit, self.image_height / y_limit)


def sent_size(width: int, height: int, family: ModelFamily) -> tuple[int, int]:
    """Width and height to send: multiples of the family's factor, inside its limits, both axes at nearly one scale.

    Small crops are enlarged to about TARGET_PIXELS, larger images keep their size up to the family's limit. A family
    that squeezes every image into its square gets that square from us.
    """
    if family.square:
        return family.square, family.square
    aspect = min(max(width / height, 1 / MAX_ASPECT), MAX_ASPECT)
    area = min(max(width * height, TARGET_PIXELS, family.min_pixels), family.max_pixels)
    factor = family.factor
    first = max(1, math.ceil(math.sqrt(area * aspect) / factor - 1e-9))
    candidates = [_side_pair(columns, aspect, factor) for columns in range(first, first + ASPECT_CANDIDATES)]
    fitting = [pair for pair in candidates if family.min_pixels <= pair[0] * pair[1] <= family.max_pixels]
    while not fitting:  # only at the upper limit: step down until the area fits
        first -= 1
        pair = _side_pair(max(1, first), aspect, factor)
        fitting = [pair] if pair[0] * pair[1] <= family.max_pixels else []
    skews = [abs(math.log(pair[0] / pair[1] / aspect)) for pair in fitting]  # smallest area first
    good_enough = max(SKEW, min(skews))
    return next(pair for pair, skew in zip(fitting, skews, strict=True) if skew <= good_enough)


def image_tokens(width: int, height: int, family: ModelFamily) -> int:
    """Prompt tokens of an image whose sides (pixels) are multiples of the family's factor.

    One per factor x factor pixels: patches of half that side, merged 2 x 2 (Wang et al. 2024, Sec. 2.1).
    """
    return (width // family.factor) * (height // family.factor)


def _side_pair(columns: int, aspect: float, factor: int) -> tuple[int, int]:
    rows = max(1, round(columns / aspect))
    return columns * factor, rows * factor


def prepare(image: Image.Image, family: ModelFamily) -> tuple[Image.Image, Sent]:
    """The enlarged image to send and the object that converts its answers back."""
    width, height = sent_size(image.width, image.height, family)
    resized = Image.fromarray(resize(np.asarray(image), (width, height)))
    return resized, Sent(image.width, image.height, width, height, family.space)


def resize(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Pixels [H, W, 3] at `size` (width, height): OpenCV's bicubic, a fifth of Pillow's time; smaller ones averaged."""
    shrinks = size[0] * size[1] < pixels.shape[0] * pixels.shape[1]
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC), np.uint8)
