"""Checks of a box between the model's answer and the label row; every change and every doubt is a flag.

Flags of one box: `reordered` (corners were swapped), `clipped` (it left the image), `not_finite`, `outside`,
`too_small`, `whole_image`. The last four make it an invalid box.
Flags between the boxes of one image: `order` (head above upper body above legs does not hold), `duplicate`.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

from shared.geometry import Box, clipped, iou, ordered
from shared.schemas import PARTS

MIN_SIDE_PX = 2.0  # of the original image: less is a point or a line
MIN_AREA_SHARE = 0.001  # of the image: a head of a person crop covers 2 to 8 %
WHOLE_IMAGE_SHARE = 0.95  # no body part fills a person crop: the model boxed the person
CLIP_TOLERANCE_PX = 0.01  # a conversion's rounding does not count as clipping
DUPLICATE_IOU = 0.95


class CheckedBox(NamedTuple):
    """A box in pixels of the original image, None when it is invalid, and the flags."""

    box: Box | None
    flags: tuple[str, ...]


def check_box(box: Box, width: int, height: int) -> CheckedBox:
    """Order the corners, clip to the image of width x height pixels, reject what cannot be a body part."""
    if not all(math.isfinite(value) for value in box):
        return CheckedBox(None, ("not_finite",))
    flags: list[str] = []
    in_order = ordered(box)
    if in_order != box:
        flags.append("reordered")
    inside = clipped(in_order, width, height)
    if max(abs(a - b) for a, b in zip(inside, in_order, strict=True)) > CLIP_TOLERANCE_PX:
        flags.append("clipped")
    if fault := _fault(inside, width, height):
        return CheckedBox(None, (*flags, fault))
    return CheckedBox(inside, tuple(flags))


def _fault(box: Box, width: int, height: int) -> str | None:
    share = box.area / (width * height)
    if share == 0:
        return "outside"
    if min(box.width, box.height) < MIN_SIDE_PX or share < MIN_AREA_SHARE:
        return "too_small"
    return "whole_image" if share >= WHOLE_IMAGE_SHARE else None


def relation_flags(boxes: Mapping[str, Box]) -> dict[str, tuple[str, ...]]:
    """Flags between the boxes of one image, by part; parts without a flag are left out.

    Parts of the vocabulary must follow each other downwards (by their centres); no two parts may share one box.
    """
    found: dict[str, set[str]] = {}
    for upper, lower in pairwise(part for part in PARTS if part in boxes):
        if _centre_y(boxes[upper]) >= _centre_y(boxes[lower]):
            for part in (upper, lower):
                found.setdefault(part, set()).add("order")
    names = list(boxes)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            if iou(boxes[first], boxes[second]) >= DUPLICATE_IOU:
                for part in (first, second):
                    found.setdefault(part, set()).add("duplicate")
    return {part: tuple(sorted(flags)) for part, flags in found.items()}


def _centre_y(box: Box) -> float:
    return (box.y_min + box.y_max) / 2
