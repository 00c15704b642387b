"""Image and part boxes through one geometry: resize, flip, normalise, and only then boxes to patches."""

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid.data.part_masks import PatchGrid, patch_masks

Interpolation = Literal["bicubic", "bilinear"]

MEAN = STD = 0.5  # of every channel, after scaling to 0..1
TRAINING: Interpolation = "bicubic"  # Sec. 5 of the method
TESTING: Interpolation = "bilinear"  # also of the feature bank


class Sample(NamedTuple):
    """An image and its part boxes in that image's own pixels."""

    image: Tensor  # uint8 [3, H, W]
    boxes: Tensor  # float64 [R, 4], XYXY, maxima exclusive; a NaN row is a part without a box


def resized(pixels: Tensor, boxes: np.ndarray, size: tuple[int, int], mode: Interpolation) -> Sample:
    """Resize an image, uint8 [3, H, W], and its boxes [R, 4] (pixels of that image) to `size` = (height, width).

    Torch's antialiased kernel for bytes is Pillow's resize with 16-bit weights: one pixel in a hundred differs by one
    of 255 steps, and it takes a quarter of the time.
    """
    across, down = size[1] / pixels.shape[2], size[0] / pixels.shape[1]
    return Sample(
        F.interpolate(pixels[None], size, mode=mode, antialias=True)[0],
        torch.from_numpy(np.asarray(boxes, np.float64) * (across, down, across, down)),
    )


def flipped(sample: Sample) -> Sample:
    """The horizontally mirrored image with its mirrored boxes."""
    left, top, right, bottom = sample.boxes.unbind(-1)
    width = sample.image.shape[-1]
    return Sample(sample.image.flip(-1), torch.stack([width - right, top, width - left, bottom], dim=-1))


def is_flipped(chance: float, *, seed: int, epoch: int, index: int) -> bool:
    """Whether image `index` is flipped in `epoch`: true with probability `chance`, a function of the three numbers
    alone, so that neither the number of loading processes nor an interruption changes it."""
    return bool(np.random.default_rng((seed, epoch, index)).random() < chance)


def visible_patches(boxes: Tensor, grid: PatchGrid, patch_coverage: float) -> Tensor:
    """Which part is visible in which patch: bool [..., R, L] for boxes [..., R, 4] in pixels of the model's input; a
    part without a box is visible in none."""
    size = (grid.image_width, grid.image_height)
    visible = patch_masks(boxes.reshape(-1, 4), original_size=size, grid=grid, patch_coverage=patch_coverage)
    return visible.reshape(*boxes.shape[:-1], grid.count)


def normalised(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] in 0..255 -> float32 in -1..1 (mean and deviation 0.5)."""
    if images.device.type == "cpu":  # in NumPy: torch's threads would keep spinning beside the loading processes
        values = images.numpy().astype(np.float32)
        values *= np.float32(1 / (255 * STD))
        values -= np.float32(MEAN / STD)
        return torch.from_numpy(values)
    scaled = images.to(torch.float32)
    # (x / 255 - MEAN) / STD in a single pass over the new tensor
    return torch.add(scaled.new_tensor(-MEAN / STD), scaled, alpha=1 / (255 * STD), out=scaled)
