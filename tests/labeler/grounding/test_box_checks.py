"""Every change of a box is a flag; what cannot be mended has no box."""

import math

import pytest

from labeler.grounding.box_checks import check_box, relation_flags
from shared.geometry import Box

GOOD = Box(10, 20, 30, 50)


@pytest.mark.parametrize(
    ("box", "expected", "flags"),
    [
        (GOOD, GOOD, ()),
        (Box(30, 50, 10, 20), GOOD, ("reordered",)),
        (Box(-5, 20, 30, 50), Box(0, 20, 30, 50), ("clipped",)),
        (Box(30, 140, 10, 20), Box(10, 20, 30, 128), ("reordered", "clipped")),
        (Box(10, 20, 30, 20), None, ("outside",)),
        (Box(70, 20, 90, 50), None, ("clipped", "outside")),
        (Box(10, 20, 11, 50), None, ("too_small",)),
        (Box(0, 0, 64, 127), None, ("whole_image",)),
        (Box(math.nan, 0, 1, 1), None, ("not_finite",)),
        (Box(0, 0, math.inf, 1), None, ("not_finite",)),
    ],
)
def test_one_box(box: Box, expected: Box | None, flags: tuple[str, ...]) -> None:
    assert check_box(box, 64, 128) == (expected, flags)


def test_order_flags_both_parts_of_the_broken_pair() -> None:
    boxes = {"head": Box(0, 60, 10, 70), "upper_body": Box(0, 20, 10, 40), "legs": Box(0, 70, 10, 90)}
    assert relation_flags(boxes) == {"head": ("order",), "upper_body": ("order",)}


def test_order_looks_past_a_missing_part() -> None:
    assert set(relation_flags({"head": Box(0, 60, 9, 70), "legs": Box(0, 10, 9, 30)})) == {"head", "legs"}


def test_duplicates() -> None:
    found = relation_flags({"head": GOOD, "upper_body": GOOD, "legs": Box(10, 70, 30, 120)})
    assert found == {"head": ("duplicate", "order"), "upper_body": ("duplicate", "order")}


def test_a_good_figure_has_no_flags() -> None:
    assert relation_flags({"legs": Box(0, 50, 9, 90), "head": Box(0, 0, 9, 10), "upper_body": Box(0, 10, 9, 50)}) == {}
