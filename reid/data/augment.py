"""Augmentation of training images and their boxes: flip, crop, colour jitter, random erasing.

Every random number is drawn from (seed, epoch, index, kind of change) alone, so that neither the number of loading
processes nor an interruption nor another option changes it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from reid.config import DataConfig
from reid.data.transforms import Sample, flipped, is_flipped

ERASED_AREA = (0.02, 0.4)  # fraction of the image (Zhong et al. 2020, Random Erasing)
ERASED_ASPECT = (0.3, 1 / 0.3)  # height / width
GREY = 127  # the middle of 0..255, about 0 for the model
_CROP, _COLOUR, _ERASE = 1, 2, 3  # kinds of change; the flip has none


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation, off by default. See DataConfig for the meaning."""

    flip: float = 0.0
    crop_padding: int = 0
    min_box_visibility: float = 0.5
    erasing: float = 0.0
    colour_jitter: float = 0.0
    seed: int = 0

    @classmethod
    def of(cls, config: DataConfig, seed: int) -> "Augmentation":
        names = ("flip", "crop_padding", "min_box_visibility", "erasing", "colour_jitter")
        return cls(**{name: getattr(config, name) for name in names}, seed=seed)

    def apply(self, sample: Sample, *, epoch: int, index: int) -> Sample:
        """The augmented sample of image `index` in `epoch`, of the same size; the given sample is not changed."""

        def draws(kind: int) -> np.random.Generator:
            return np.random.default_rng((self.seed, epoch, index, kind))

        if self.flip and is_flipped(self.flip, seed=self.seed, epoch=epoch, index=index):
            sample = flipped(sample)
        if self.crop_padding:
            top, left = draws(_CROP).integers(0, 2 * self.crop_padding + 1, 2)
            sample = cropped(sample, self.crop_padding, int(top), int(left), self.min_box_visibility)
        if self.colour_jitter:
            factors = draws(_COLOUR).uniform(1 - self.colour_jitter, 1 + self.colour_jitter, 3)
            sample = recoloured(sample, *factors.tolist())
        if self.erasing:
            generator = draws(_ERASE)
            if generator.random() < self.erasing:
                sample = erased(sample, *erased_rectangle(generator, *sample.image.shape[-2:]))
        return sample


def cropped(sample: Sample, padding: int, top: int, left: int, min_box_visibility: float) -> Sample:
    """Pad by black pixels and cut the image's own size out again, its corner at (top, left) of the padded image.

    Boxes are shifted and clipped. A part with less than the fraction `min_box_visibility` of its box (clipped to the
    image) left inside gets a NaN row: it is absent.
    """
    height, width = sample.image.shape[-2:]

    def cut(whole: Tensor) -> Tensor:
        inside: Tensor = v2.functional.crop(v2.functional.pad(whole, [padding] * 4), top, left, height, width)
        return inside

    boxes = tv_tensors.BoundingBoxes(sample.boxes, format="XYXY", canvas_size=(height, width))
    clipped = v2.functional.clamp_bounding_boxes(boxes)
    rows = cut(clipped).as_subclass(Tensor)
    rows[~(_areas(rows) >= min_box_visibility * _areas(clipped.as_subclass(Tensor)))] = torch.nan
    return Sample(cut(sample.image), rows)


def recoloured(sample: Sample, brightness: float, contrast: float, saturation: float) -> Sample:
    """The image with each property multiplied by its factor, one after another; the boxes do not change."""
    image = v2.functional.adjust_brightness(sample.image, brightness)
    image = v2.functional.adjust_contrast(image, contrast)
    return Sample(v2.functional.adjust_saturation(image, saturation), sample.boxes)


def erased(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """The image with a grey rectangle. The boxes do not change: an occluded part is still where it is."""
    grey = torch.full((3, 1, 1), GREY, dtype=sample.image.dtype)
    return Sample(v2.functional.erase(sample.image, top, left, height, width, grey), sample.boxes)


def erased_rectangle(generator: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw top, left, height, width of a rectangle inside an image, with at least one pixel."""
    area = generator.uniform(*ERASED_AREA) * height * width
    aspect = math.exp(generator.uniform(*np.log(ERASED_ASPECT)))
    tall = min(max(round(math.sqrt(area * aspect)), 1), height)
    wide = min(max(round(math.sqrt(area / aspect)), 1), width)
    return int(generator.integers(0, height - tall + 1)), int(generator.integers(0, width - wide + 1)), tall, wide


def _areas(boxes: Tensor) -> Tensor:
    """Boxes (R, 4) XYXY -> (R,) square pixels; NaN for a NaN row."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
