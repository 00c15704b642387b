"""Coordinate spaces of the model families, and the one conversion to pixels of the original image.

Qwen2-VL, Qwen3-VL and CogVLM-grounding answer in thousandths of the image, Qwen2.5-VL in pixels of the image *after*
the server's resize to multiples of 28. That resize moves a box of a 64 x 128 crop by up to a tenth of its size, so
crops are resized to such multiples here, before they are sent, and the server leaves them unchanged.
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
AnswerForm = Literal["json", "brackets"]  # one JSON object for any number of parts, or [[x0,y0,x1,y1]] for a single one

TARGET_PIXELS = 156_800  # 280 x 560: a 64 x 128 crop enlarged about 4.4 times, 200 image tokens at factor 28
MAX_ASPECT = 100.0  # the families' own resize rejects aspect ratios above 200
ASPECT_CANDIDATES = 4  # widths tried, from the smallest sufficient one
SKEW = 0.03  # log ratio of the two axes' scales that is small enough to spend no more tokens on


@dataclass(frozen=True)
class ModelFamily:
    """Image sizes and coordinate space of one family of models.

    Args:
        name: value of LABELER_FAMILY.
        pattern: regular expression searched in a model's lower-case name.
        factor: image sides must be multiples of this many pixels.
        space: unit of its coordinates.
        min_pixels, max_pixels: range of areas that its processor leaves unchanged. Where the processor allows more, the
            upper limit is ours: more tokens cost time and add no detail to a person crop.
        form: the answer form that it was trained on.
        square: side (pixels) of the square that every image is resized to; None when it keeps its aspect ratio.
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
    """The family `chosen`, by default found in the model's name.

    Raises ConfigError, which lists the known families, for an unknown one.
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
        f"unknown coordinate space: the model name {model!r} matches no known family",
        fix=f"set LABELER_FAMILY to one of: {known}",
    )


@dataclass(frozen=True)
class Sent:
    """Sizes (pixels) of the original image and of the one that was sent, and the space of the answer."""

    image_width: int
    image_height: int
    sent_width: int
    sent_height: int
    space: Space

    @property
    def name(self) -> str:
        """Space and sent size as written to label rows, e.g. `sent_pixels@280x560`."""
        return f"{self.space}@{self.sent_width}x{self.sent_height}"

    @property
    def limits(self) -> tuple[float, float]:
        """Largest x and y inside the image, in the space of the answer."""
        return (1000.0, 1000.0) if self.space == "thousandths" else (float(self.sent_width), float(self.sent_height))

    def to_image(self, box: Box) -> Box:
        """An answered box in pixels of the original image; neither ordered nor clipped."""
        x_limit, y_limit = self.limits
        return scaled(box, self.image_width / x_limit, self.image_height / y_limit)


def sent_size(width: int, height: int, family: ModelFamily) -> tuple[int, int]:
    """Width and height (pixels) to send: multiples of the family's factor, within its limits, of nearly equal aspect.

    Small crops are enlarged to about TARGET_PIXELS, larger images keep their size up to the family's limit. Families
    with a fixed square get that square.
    """
    if family.square:
        return family.square, family.square
    aspect = min(max(width / height, 1 / MAX_ASPECT), MAX_ASPECT)
    area = min(max(width * height, TARGET_PIXELS, family.min_pixels), family.max_pixels)
    factor = family.factor
    first = max(1, math.ceil(math.sqrt(area * aspect) / factor - 1e-9))
    candidates = [_side_pair(columns, aspect, factor) for columns in range(first, first + ASPECT_CANDIDATES)]
    fitting = [pair for pair in candidates if family.min_pixels <= pair[0] * pair[1] <= family.max_pixels]
    while not fitting:  # only at the upper limit: reduce until the area fits
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
    """The resized image to send, and the conversion of its answers back."""
    width, height = sent_size(image.width, image.height, family)
    resized = Image.fromarray(resize(np.asarray(image), (width, height)))
    return resized, Sent(image.width, image.height, width, height, family.space)


def resize(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Pixels [H, W, 3] at `size` (width, height): bicubic, or area averaging when shrinking."""
    shrinks = size[0] * size[1] < pixels.shape[0] * pixels.shape[1]
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC), np.uint8)
