"""Augmentation of whole batches of training images and their boxes: flip, crop, colour jitter, random erasing.

Every random number is drawn from (seed, epoch, index, kind of change) alone, so that neither the number of loading
threads nor an interruption nor the images beside it in a batch nor another option changes it. What is drawn is applied
to the batch as a whole, wherever its images are: to the boxes on the CPU, to the images on the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid.config import DataConfig
from reid.data.transforms import sent

ERASED_AREA = (0.02, 0.4)  # fraction of the image (Zhong et al. 2020, Random Erasing)
ERASED_ASPECT = (0.3, 1 / 0.3)  # height / width
GREY = 127  # the middle of 0..255, about 0 for the model
LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, of red, green and blue
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

    def drawn(self, indices: Sequence[int], *, epoch: int, size: tuple[int, int]) -> "Changes":
        """What happens in `epoch` to the images of a batch, of `size` (height, width)."""
        flipped = [place for place, index in enumerate(indices) if self.is_flipped(epoch=epoch, index=index)]
        corners, factors, rectangles = [], [], []
        for index in indices:
            if self.crop_padding:
                corners.append(self._draws(epoch, index, _CROP).integers(0, 2 * self.crop_padding + 1, 2))
            if self.colour_jitter:
                bounds = 1 - self.colour_jitter, 1 + self.colour_jitter
                factors.append(self._draws(epoch, index, _COLOUR).uniform(*bounds, 3))
            if self.erasing:
                generator = self._draws(epoch, index, _ERASE)
                hit = generator.random() < self.erasing
                rectangles.append(erased_rectangle(generator, *size) if hit else (0, 0, 0, 0))
        return Changes(
            flipped=torch.tensor(flipped) if flipped else None,
            corners=torch.from_numpy(np.stack(corners)) if corners else None,
            factors=torch.from_numpy(np.stack(factors)) if factors else None,
            rectangles=torch.tensor(rectangles) if rectangles else None,
            padding=self.crop_padding,
            min_box_visibility=self.min_box_visibility,
        )

    def is_flipped(self, *, epoch: int, index: int) -> bool:
        """Whether image `index` is mirrored in `epoch`: true with probability `flip`."""
        return bool(self.flip and self._draws(epoch, index).random() < self.flip)

    def _draws(self, epoch: int, index: int, *kind: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch, index, *kind))


@dataclass(frozen=True)
class Changes:
    """What was drawn for a batch of B images; None where nothing of the kind happens. Applied in this order.

    flipped: long [f], the places in the batch of the images that are mirrored.
    corners: long [B, 2], top and left of the cut out of the image padded by `padding` black pixels.
    factors: float64 [B, 3] of brightness, contrast and saturation.
    rectangles: long [B, 4] top, left, height and width of what is painted grey; of height 0: nothing.
    """

    flipped: Tensor | None = None
    corners: Tensor | None = None
    factors: Tensor | None = None
    rectangles: Tensor | None = None
    padding: int = 0
    min_box_visibility: float = 0.5

    def to(self, device: torch.device) -> "Changes":
        """The same on a device, for its images; sent without waiting."""
        names = ("flipped", "corners", "factors", "rectangles")
        found = {name: sent(value, device) for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **found)  # type: ignore[arg-type]

    def boxes(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """The boxes float64 [B, R, 4] of the changed images, of `size` (height, width); the given ones are kept."""
        boxes = boxes.clone()
        if self.flipped is not None:
            boxes[self.flipped] = mirrored_boxes(boxes[self.flipped], size[1])
        if self.corners is not None:
            boxes = cropped_boxes(boxes, self.corners, size, self.padding, self.min_box_visibility)
        return boxes  # neither colours nor erasing move one: an occluded part is still where it is

    def images(self, images: Tensor) -> Tensor:
        """The changed images uint8 [B, 3, H, W], on their device; the given ones may be changed in place."""
        if self.flipped is not None:
            images = mirrored(images, self.flipped)
        if self.corners is not None:
            images = cropped(images, self.corners, self.padding)
        if self.factors is not None:
            images = recoloured(images, self.factors)
        if self.rectangles is not None:
            images = erased(images, self.rectangles)
        return images


def mirrored(images: Tensor, places: Tensor) -> Tensor:
    """The images uint8 [B, 3, H, W] with those at `places` mirrored, in place."""
    if images.device.type == "cpu":  # OpenCV: torch's threads would keep spinning beside those of the model
        for place in places.tolist():
            rows = images[place].flatten(0, 1).numpy()  # [3 * H, W]
            cv2.flip(rows, 1, dst=rows)
        return images
    return images.index_copy_(0, places, images.index_select(0, places).flip(-1))


def mirrored_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes [..., 4] XYXY in an image `width` pixels wide -> those of the mirrored image."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack([width - right, top, width - left, bottom], dim=-1)


def cropped(images: Tensor, corners: Tensor, padding: int) -> Tensor:
    """Pad images [B, 3, H, W] by black pixels and cut their own size out again, each at its corner (top, left) of the
    padded image; corners long [B, 2] in 0..2 * padding."""
    height, width = images.shape[-2:]
    padded = F.pad(images, [padding] * 4)
    cuts = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, 3, 2p + 1, 2p + 1, H, W], a view
    return cuts[torch.arange(len(images), device=images.device), :, corners[:, 0], corners[:, 1]]


def cropped_boxes(
    boxes: Tensor, corners: Tensor, size: tuple[int, int], padding: int, min_box_visibility: float
) -> Tensor:
    """Boxes [B, R, 4] of the images that `cropped` gives: clipped to the image, shifted and clipped again.

    A part with less than the fraction `min_box_visibility` of its box (clipped to the image) left inside gets a NaN
    row: it is absent.
    """
    most = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    clipped = torch.minimum(boxes.clamp_min(0), most)
    moved = clipped + padding - corners[:, [1, 0, 1, 0]][:, None]
    moved = torch.minimum(moved.clamp_min(0), most)
    kept = _areas(moved) >= min_box_visibility * _areas(clipped)
    return moved.where(kept[..., None], torch.nan)


def recoloured(images: Tensor, factors: Tensor) -> Tensor:
    """Each image's brightness, contrast and saturation multiplied by its factors [B, 3], one after another, rounded
    down to bytes after each, as torchvision's functions of one image do."""
    ratios = factors[:, :, None, None, None]  # [B, 3, 1, 1, 1]
    bright = (images * ratios[:, 0].float()).clamp_(0, 255).floor_()
    mean = _luma(bright).mean(dim=(-3, -2, -1), keepdim=True)
    contrasted = _blended(bright, mean, ratios[:, 1])
    return _blended(contrasted, _luma(contrasted), ratios[:, 2]).to(torch.uint8)


def erased(images: Tensor, rectangles: Tensor) -> Tensor:
    """The images, each with its rectangle [B, 4] (top, left, height, width) painted grey."""
    top, left, tall, wide = rectangles[:, :, None].unbind(1)  # [B, 1] each
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    down, across = (rows >= top) & (rows < top + tall), (columns >= left) & (columns < left + wide)
    return images.masked_fill_(down[:, None, :, None] & across[:, None, None, :], GREY)


def erased_rectangle(generator: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw top, left, height, width of a rectangle inside an image, with at least one pixel."""
    area = generator.uniform(*ERASED_AREA) * height * width
    aspect = math.exp(generator.uniform(*np.log(ERASED_ASPECT)))
    tall = min(max(round(math.sqrt(area * aspect)), 1), height)
    wide = min(max(round(math.sqrt(area / aspect)), 1), width)
    return int(generator.integers(0, height - tall + 1)), int(generator.integers(0, width - wide + 1)), tall, wide


def _luma(images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W], rounded down."""
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).floor_()


def _blended(images: Tensor, others: Tensor, ratios: Tensor) -> Tensor:
    """images * ratio + others * (1 - ratio), rounded down to 0..255."""
    mixed = images * ratios.float() + others * (1.0 - ratios).float()
    return mixed.clamp_(0, 255).floor_()


def _areas(boxes: Tensor) -> Tensor:
    """Boxes [..., 4] XYXY -> [...] square pixels; NaN for a NaN row."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
