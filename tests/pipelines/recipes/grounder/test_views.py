"""Views of a scene: boxes stay on what they box, whatever is done to the picture."""

import numpy as np
import pytest

from pipelines.recipes.grounder.scenes import Scenes
from pipelines.recipes.grounder.views import random_view

COLOURS = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
BOXES = np.array([[40, 20, 60, 50], [30, 50, 72, 110], [33, 110, 66, 230]], np.float32)


def painted() -> np.ndarray:
    pixels = np.full((256, 100, 3), 90, np.uint8)
    for (x0, y0, x1, y1), colour in zip(BOXES.astype(int), COLOURS, strict=True):
        pixels[y0:y1, x0:x1] = colour
    return pixels


@pytest.fixture(autouse=True)
def no_degrading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours stay what they are, so that the picture itself says where the parts went."""
    monkeypatch.setattr("pipelines.recipes.grounder.views._degrade", lambda rng, pixels: pixels)


def painted_box(pixels: np.ndarray, colour: np.ndarray) -> list[float] | None:
    """Around all pixels that are more of a part's colour than of anything else."""
    there = np.argwhere(np.abs(pixels.astype(int) - colour.astype(int)).sum(axis=2) < 240)
    if not len(there):
        return None
    (y0, x0), (y1, x1) = there.min(0), there.max(0) + 1
    return [x0, y0, x1, y1]


def test_boxes_move_with_their_parts() -> None:
    rng = np.random.default_rng(0)
    grey = np.full((256, 100, 3), 90, np.uint8)
    seen = gone = 0
    for _ in range(600):
        pixels, boxes = random_view(rng, painted(), BOXES, (96, 192), grey, strength=0.0)
        assert pixels.shape == (192, 96, 3) and pixels.dtype == np.uint8
        for box, colour in zip(boxes, COLOURS, strict=True):
            where = painted_box(pixels, colour)
            if np.isnan(box).any():
                gone += 1
            elif where is not None and min(where) > 0 and where[2] < 96 and where[3] < 192:
                assert np.abs(np.array(where) - box).max() <= 3  # pixels: the picture was resized
                seen += 1
    assert seen > 800 and gone > 20


def test_the_same_seed_gives_the_same_view() -> None:
    first, again = (
        random_view(np.random.default_rng(5), painted(), BOXES, (48, 128), painted(), strength=1.0) for _ in range(2)
    )
    assert (first[0] == again[0]).all()
    assert np.array_equal(first[1], again[1], equal_nan=True)


def test_boxes_lie_inside_their_view() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        _, boxes = random_view(rng, painted(), BOXES, (64, 128), painted(), strength=1.0)
        known = boxes[~np.isnan(boxes).any(axis=1)]
        assert (known >= 0).all() and (known[:, 2] <= 64).all() and (known[:, 3] <= 128).all()
        assert (known[:, 0] < known[:, 2]).all() and (known[:, 1] < known[:, 3]).all()


def test_scenes_can_be_chosen_from() -> None:
    scenes = Scenes([painted()] * 3, np.stack([BOXES, 2 * BOXES, 3 * BOXES]))
    assert len(scenes) == 3 and scenes.subset([2]).boxes[0, 0, 0] == 120
