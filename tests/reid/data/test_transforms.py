import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from reid.data.augment import mirrored_boxes
from reid.data.decoding import resized_pixels
from reid.data.part_masks import PatchGrid
from reid.data.transforms import TESTING, TRAINING, Interpolation, normalised, resized_boxes, visible_patches

GRID = PatchGrid(32, 16, 8, 8)
BOXES = np.array([[2.0, 0.0, 9.0, 7.5], [1.0, 8.0, 12.0, 30.0], [math.nan] * 4])


def picture(width: int = 12, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("mode", "pillow"), [(TRAINING, Image.Resampling.BICUBIC), (TESTING, Image.Resampling.BILINEAR)]
)
@pytest.mark.parametrize(("width", "height"), [(12, 40), (61, 163), (1, 1), (128, 256), (500, 900)])
def test_resize_is_pillows_to_a_rounding_step(
    mode: Interpolation, pillow: Image.Resampling, width: int, height: int
) -> None:
    """On noise, the hardest there is: on photographs 99 of 100 values are equal."""
    found = resized_pixels(pixels(picture(width, height)), (256, 128), mode)
    expected = np.asarray(picture(width, height).resize((128, 256), pillow)).transpose(2, 0, 1)
    difference = np.abs(found.numpy().astype(int) - expected)
    assert difference.mean() < 0.05 and np.mean(difference > 1) < 1e-3
    assert difference.max() <= (8 if mode == TRAINING else 1)


def moved(boxes: np.ndarray, width: int, height: int, size: tuple[int, int] = (32, 16)) -> Tensor:
    """Boxes [R, 4] of one image, resized with it."""
    return resized_boxes(boxes[None], np.array([[height, width]]), size)[0]


def test_boxes_move_with_the_image() -> None:
    found = resized_boxes(np.stack([BOXES, BOXES]), np.array([[40, 12], [32, 16]]), (32, 16))
    expected = BOXES * np.array([16 / 12, 32 / 40, 16 / 12, 32 / 40])
    assert np.allclose(found[0].numpy(), expected, atol=1e-9, equal_nan=True)
    assert np.array_equal(found[1].numpy(), BOXES, equal_nan=True) and found.dtype == torch.float64


def test_a_painted_box_is_where_its_box_says_after_resize_and_flip() -> None:
    white = torch.zeros(3, 40, 24, dtype=torch.uint8)
    white[:, 10:30, 2:8] = 255
    image = resized_pixels(white, (80, 48), TESTING).flip(-1)
    box = mirrored_boxes(moved(np.array([[2.0, 10, 8, 30]]), 24, 40, (80, 48)), 48)
    bright = np.argwhere(image[0].numpy() > 127)
    (top, left), (bottom, right) = bright.min(axis=0), bright.max(axis=0) + 1
    assert box[0].tolist() == [left, top, right, bottom] == [32, 20, 44, 60]


def test_flipping_boxes_equals_flipping_the_mask() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        width, height = rng.integers(5, 60, 2)
        corners = rng.uniform(-5, 65, (3, 2, 2))
        boxes = moved(np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1), int(width), int(height))
        straight = visible_patches(boxes, GRID, 0.5).view(3, GRID.rows, GRID.columns)
        mirrored = visible_patches(mirrored_boxes(boxes, 16), GRID, 0.5).view(3, GRID.rows, GRID.columns)
        assert torch.equal(mirrored, straight.flip(-1))


def test_flip_exactly_at_the_threshold_and_without_a_box() -> None:
    boxes = moved(np.array([[4.0, 0, 12, 32], [math.nan] * 4]), 16, 32)
    visible = visible_patches(mirrored_boxes(boxes, 16), GRID, 0.5)  # the box covers exactly half of both columns
    assert visible[0].all() and not visible[1].any()


def test_normalised_is_the_definition() -> None:
    images: Tensor = torch.arange(256, dtype=torch.uint8).expand(2, 3, 4, 256)
    expected = (images.double() / 255 - 0.5) / 0.5
    assert torch.allclose(normalised(images).double(), expected, atol=1e-6)
    values = images.numpy().astype(np.float32)  # in this order, whatever the size of a batch
    values *= np.float32(1 / 127.5)
    values -= np.float32(1)
    assert np.array_equal(normalised(images).numpy(), values)
