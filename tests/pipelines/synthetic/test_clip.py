"""A clip is reproducible, its boxes hold the people, and everybody comes back."""

from collections import defaultdict

import numpy as np

from pipelines.synthetic.clip import SIZE, render_clip


def test_everybody_leaves_and_comes_back_and_boxes_hold_what_moves() -> None:
    frames = list(render_clip("plaza", 1, identities=4, frames=80, seed=2))
    again = next(iter(render_clip("plaza", 1, identities=4, frames=80, seed=2)))
    assert np.array_equal(again.pixels, frames[0].pixels) and again.boxes == frames[0].boxes
    seen = defaultdict(list)
    for frame in frames:
        assert frame.pixels.shape == (SIZE[1], SIZE[0], 3) and frame.pixels.dtype == np.uint8
        for identity, box in frame.boxes.items():
            assert 0 <= box.x_min < box.x_max <= SIZE[0] and 0 <= box.y_min < box.y_max <= SIZE[1]
            seen[identity].append(frame.number)
    assert set(seen) == {1, 2, 3, 4}
    for numbers in seen.values():
        assert np.diff(numbers).max() > 3, "a pause outside the picture"
    still = np.median(np.stack([frame.pixels for frame in frames]).astype(np.int16), axis=0)
    for frame in frames[10::20]:
        moving = np.abs(frame.pixels.astype(np.int16) - still).max(axis=2) > 60
        inside = np.zeros_like(moving)
        for box in frame.boxes.values():
            inside[int(box.y_min) : int(box.y_max), int(box.x_min) : int(box.x_max)] = True
        if moving.sum() > 500:
            assert (moving & inside).sum() > 0.7 * moving.sum()
