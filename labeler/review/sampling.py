"""The share of wrong boxes from a random sample of images: the estimate, its interval, and how many images it takes.

Boxes of one image are not independent, so images are what is sampled: the share is the ratio of two sums over images
and its variance is that of a ratio estimator (Cochran, Sampling Techniques, 1977, chapter 6), divided by that of as
many independent boxes to give the design effect. The interval is Wilson's with the sample reduced by that effect and by
the correction for a finite number of images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959964  # standard normal quantile of 97.5 %
MARGIN = 0.02  # half the width of the wanted interval


@dataclass(frozen=True)
class Estimate:
    """Shares are in 0..1. share: None while nothing was looked at. needed: images in all, those looked at included."""

    images: int
    boxes: int
    wrong: int
    share: float | None
    low: float
    high: float
    needed: int


def estimate(sample: Sequence[tuple[int, int]], population: int, *, margin: float = MARGIN) -> Estimate:
    """Args:
    sample: (boxes, wrong ones) of every image looked at, drawn at random.
    population: images with boxes that it was drawn from.
    """
    boxes, wrong, images = sum(b for b, _ in sample), sum(w for _, w in sample), len(sample)
    per_image = boxes / images if boxes else 1.0
    share = wrong / boxes if boxes else None
    effect = _design_effect(sample, share, per_image)
    low, high = _wilson(wrong, boxes, effect, images, population)
    # before there is an estimate, and while it is uncertain, the share within the interval that needs the most images
    hardest = min(max(0.5, low), high)
    independent = Z95**2 * hardest * (1 - hardest) / margin**2
    infinite = independent * effect / per_image
    needed = math.ceil(infinite / (1 + (infinite - 1) / population)) if population else 0
    known = share is not None and (high - low) / 2 <= margin
    return Estimate(
        images, boxes, wrong, share, low, high, images if known else min(population, max(needed, images + 1))
    )


def _design_effect(sample: Sequence[tuple[int, int]], share: float | None, per_image: float) -> float:
    """How many times as many boxes are needed than if each came from another image; at least 1."""
    images = len(sample)
    if share is None or images < 2 or not 0 < share < 1:
        return max(1.0, per_image)  # nothing tells: as if all boxes of an image were right or wrong together
    squares = sum((wrong - share * boxes) ** 2 for boxes, wrong in sample)
    of_images = squares / (images - 1) / (images * per_image**2)
    of_boxes = share * (1 - share) / (images * per_image)
    return max(1.0, of_images / of_boxes)


def _wilson(wrong: int, boxes: int, effect: float, images: int, population: int) -> tuple[float, float]:
    if not boxes:
        return 0.0, 1.0
    rest = (population - images) / max(1, population - 1)  # of an exhausted population nothing is uncertain
    if rest <= 0:
        return wrong / boxes, wrong / boxes
    count, share = boxes / effect / rest, wrong / boxes
    centre = (share + Z95**2 / (2 * count)) / (1 + Z95**2 / count)
    half = Z95 / (1 + Z95**2 / count) * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
