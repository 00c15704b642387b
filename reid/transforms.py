"""Image and part boxes through one geometry: resize, flip, normalise, and only then boxes to patches."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from reid.part_masks import PatchGrid, patch_masks

MEAN = STD = 0.5  # of every channel, after scaling to 0..1
TRAINING = v2.InterpolationMode.BICUBIC  # Sec. 5 of the method
TESTING = v2.InterpolationMode.BILINEAR  # also of the feature bank


class Sample(NamedTuple):
    """An image and its part boxes in that image's own pixels."""

    image: tv_tensors.Image  # uint8 [3, H, W]
    boxes: tv_tensors.BoundingBoxes  # float64 [R, 4], XYXY, canvas [H, W]; a NaN row is a part without a box


def resized(image: Image.Image, boxes: np.ndarray, size: tuple[int, int], mode: v2.InterpolationMode) -> Sample:
    """Resize an RGB image and its boxes [R, 4] (pixels of that image) to `size` = (height, width)."""
    canvas = (image.height, image.width)
    return Sample(
        tv_tensors.Image(v2.functional.resize(image, list(size), mode)),
        v2.functional.resize(_boxes(boxes, canvas), list(size)),
    )


def sample_of(image: Tensor, boxes: Tensor) -> Sample:
    """A sample from a resized image [3, H, W] uint8 and boxes [R, 4] in its pixels."""
    return Sample(tv_tensors.Image(image), _boxes(boxes, (image.shape[-2], image.shape[-1])))


def flipped(sample: Sample) -> Sample:
    """The horizontally mirrored image with its mirrored boxes."""
    return Sample(v2.functional.horizontal_flip(sample.image), v2.functional.horizontal_flip(sample.boxes))


def is_flipped(chance: float, *, seed: int, epoch: int, index: int) -> bool:
    """Whether image `index` is mirrored in `epoch`: true with probability `chance`, decided by the three numbers
    alone, so that neither the number of loading processes nor an interruption changes it."""
    return bool(np.random.default_rng((seed, epoch, index)).random() < chance)


def visible_patches(sample: Sample, grid: PatchGrid, visible_share: float) -> Tensor:
    """Which patches show which part: bool [R, L]; a part without a box is seen in no patch."""
    height, width = sample.image.shape[-2:]
    boxes: Tensor = sample.boxes.as_subclass(Tensor)
    return patch_masks(boxes, original_size=(width, height), grid=grid, visible_share=visible_share)


def normalised(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] in 0..255 -> float32 in -1..1 (mean and deviation 0.5)."""
    scaled = v2.functional.to_dtype(images, torch.float32, scale=True)
    result: Tensor = v2.functional.normalize(scaled, [MEAN] * 3, [STD] * 3)
    return result


def _boxes(boxes: np.ndarray | Tensor, canvas: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    # float64, so that a box that covers exactly the visible share of a patch still does so after the geometry
    rows = torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return tv_tensors.BoundingBoxes(rows, format="XYXY", canvas_size=canvas)
