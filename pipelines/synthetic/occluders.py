"""Occluders between camera and person: they cover the image and clear the part map."""

import cv2
import numpy as np

from pipelines.synthetic.layer import NOTHING, Image
from pipelines.synthetic.seeds import choose

Rng = np.random.Generator


def occlude(image: Image, part: Image, rng: Rng) -> None:
    """Draw a pole, car, box or hedge over an image [H, W, 3] and clear the part map [H, W] there; both in place."""
    mask = np.zeros(part.shape, np.uint8)
    paint = image.copy()  # the soft edge blends paint beyond the mask
    kind = choose(rng, {"pole": 3, "car": 3, "box": 2, "hedge": 2})
    {"pole": _pole, "car": _car, "box": _box, "hedge": _hedge}[kind](paint, mask, rng)
    alpha = (cv2.blur(mask, (3, 3)).astype(np.float32) / 255)[:, :, None]
    image[:] = np.rint(image * (1 - alpha) + paint * alpha).astype(np.uint8)
    part[mask > 127] = NOTHING


def _pole(paint: Image, mask: Image, rng: Rng) -> None:
    width = mask.shape[1]
    thick = int(width * (0.09 + 0.12 * rng.random()))
    left = int(rng.integers(0, width - thick))
    round_light = np.sin(np.linspace(0.35, 2.6, thick))[None, :, None]
    tone = rng.integers(60, 190) * np.array((1.0, 0.97 + 0.04 * rng.random(), 0.95))
    paint[:, left : left + thick] = (tone * (0.45 + 0.55 * round_light)).astype(np.uint8)
    mask[:, left : left + thick] = 255


def _car(paint: Image, mask: Image, rng: Rng) -> None:
    """A bonnet along the lower edge."""
    height, width = mask.shape
    top = int(height * (0.62 + 0.24 * rng.random()))
    slope = int(height * 0.10 * (rng.random() - 0.5))
    outline = np.array(
        [(0, top + slope), (width // 2, top - abs(slope) // 2), (width, top - slope), (width, height), (0, height)]
    )
    tone = rng.integers(20, 225, 3) if rng.random() < 0.4 else np.full(3, rng.integers(20, 225))
    paint[:] = tone.astype(np.uint8)
    shine = np.array([(0, top + slope + 4), (width, top - slope + 4), (width, top - slope + 9), (0, top + slope + 9)])
    cv2.fillPoly(paint, [shine.astype(np.int32)], tuple(int(0.5 * level + 110) for level in tone))
    cv2.fillPoly(mask, [outline.astype(np.int32)], 255)


def _box(paint: Image, mask: Image, rng: Rng) -> None:
    """A sign, bin or barrier that hides one side of the legs."""
    height, width = mask.shape
    wide, tall = int(width * (0.3 + 0.35 * rng.random())), int(height * (0.2 + 0.25 * rng.random()))
    left = 0 if rng.random() < 0.5 else width - wide
    tone = rng.integers(40, 210, 3)
    paint[:] = tone.astype(np.uint8)
    paint[height - tall : height - tall + max(2, tall // 8)] = (tone * 0.6).astype(np.uint8)
    mask[height - tall :, left : left + wide] = 255


def _hedge(paint: Image, mask: Image, rng: Rng) -> None:
    height, width = mask.shape
    top = height * (0.68 + 0.2 * rng.random())
    paint[:] = (48, 78, 40)
    for x, y, tone in zip(rng.random(90), rng.random(90), rng.random(90), strict=True):
        place = (int(x * width), int(top + y * (height - top)))
        colour = (int(36 + 50 * tone), int(60 + 70 * tone), int(30 + 30 * tone))
        cv2.circle(paint, place, max(2, width // 16), colour, -1)
        cv2.circle(mask, place, max(2, width // 16), 255, -1)
    mask[int(top) + width // 16 :] = 255
