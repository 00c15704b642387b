import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.geometry import Box, clipped, iou, mirrored, ordered, scaled

whole = st.integers(-5, 15)
boxes = st.builds(Box, whole, whole, whole, whole)


def _pixels(box: Box, size: int = 40, origin: int = 10) -> np.ndarray:
    """The box as a mask of unit pixels: the naive twin, exact for whole-number corners."""
    mask = np.zeros((size, size), bool)
    for y in range(size):
        for x in range(size):
            mask[y, x] = box.x_min <= x - origin < box.x_max and box.y_min <= y - origin < box.y_max
    return mask


@given(boxes, boxes)
def test_iou_and_area_count_pixels(first: Box, second: Box) -> None:
    a, b = _pixels(first), _pixels(second)
    assert first.area == a.sum()
    union = (a | b).sum()
    expected = (a & b).sum() / union if union else 0.0
    assert math.isclose(iou(first, second), expected, abs_tol=1e-12)


@given(boxes)
def test_clipping_keeps_exactly_the_pixels_inside(box: Box) -> None:
    box = ordered(box)
    inside = _pixels(Box(0, 0, 9, 7)) & _pixels(box)
    assert clipped(box, 9, 7).area == inside.sum()
    assert (_pixels(clipped(box, 9, 7)) == inside).all()


@given(boxes)
def test_mirroring_flips_the_pixels_and_twice_is_nothing(box: Box) -> None:
    size, origin = 40, 10
    flipped = _pixels(mirrored(box, size - 2 * origin))
    assert (flipped == _pixels(box)[:, ::-1]).all()
    assert mirrored(mirrored(box, 7), 7) == box


def test_ordering_and_scaling() -> None:
    assert ordered(Box(5, 9, 1, 2)) == Box(1, 2, 5, 9)
    assert scaled(Box(1, 2, 3, 4), 2, 0.5) == Box(2, 1, 6, 2)
    assert Box(0, 0, 2, 3).width == pytest.approx(2)
    assert Box(0, 0, 2, 3).height == pytest.approx(3)
