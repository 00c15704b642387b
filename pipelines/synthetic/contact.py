"""Contact sheets for people who look: one row per identity, one column per camera."""

import cv2
import numpy as np

from pipelines.synthetic.layer import Image
from pipelines.synthetic.render import DEFAULT_SIZE, render_person
from shared.geometry import Box
from shared.schemas import PARTS

_PART_RGB = {"head": (255, 90, 60), "upper_body": (60, 230, 90), "legs": (70, 140, 255)}


def contact_sheet(
    domain: str,
    *,
    identities: int = 8,
    cameras: int = 4,
    images_per_camera: int = 1,
    seed: int = 0,
    size: tuple[int, int] = DEFAULT_SIZE,
    boxes: bool = False,
    first_identity: int = 1,
) -> Image:
    """Pictures side by side: [identities * H, cameras * images_per_camera * W, 3] RGB, part boxes drawn if asked.

    Raises ConfigError for an unknown domain.
    """
    rows = []
    for identity in range(first_identity, first_identity + identities):
        row = []
        for camera in range(1, cameras + 1):
            for index in range(images_per_camera):
                sample = render_person(domain, identity, camera, index, seed=seed, size=size)
                row.append(_marked(sample.pixels, sample.parts) if boxes else sample.pixels)
        rows.append(np.hstack(row))
    return np.vstack(rows)


def _marked(pixels: Image, parts: dict[str, Box | None]) -> Image:
    marked = pixels.copy()
    for part in PARTS:
        box = parts[part]
        if box is not None:
            low, high = (int(box.x_min), int(box.y_min)), (int(box.x_max) - 1, int(box.y_max) - 1)
            cv2.rectangle(marked, low, high, _PART_RGB[part], 1)
    return marked
