"""What images and part boxes go through together: sizes, normalisation, and at the end boxes to patches."""

from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from reid.data.part_masks import PatchGrid, patch_masks

Interpolation = Literal["bicubic", "bilinear"]

MEAN = STD = 0.5  # of every channel, after scaling to 0..1
TRAINING: Interpolation = "bicubic"  # Sec. 5 of the method
TESTING: Interpolation = "bilinear"  # also of the feature bank
_NORMALISED = np.arange(256, dtype=np.float32) * np.float32(1 / (255 * STD)) - np.float32(MEAN / STD)  # of every byte


def resized_boxes(boxes: np.ndarray, originals: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Boxes [B, R, 4] in pixels of images of the sizes `originals` int [B, 2] (height, width) -> float64 in pixels of
    the images resized to `size`."""
    down, across = (np.asarray(size) / originals).T
    return torch.from_numpy(boxes * np.stack([across, down, across, down], axis=1)[:, None])


def visible_patches(boxes: Tensor, grid: PatchGrid, patch_coverage: float) -> Tensor:
    """Which part is visible in which patch: bool [..., R, L] for boxes [..., R, 4] in pixels of the model's input; a
    part without a box is visible in none."""
    size = (grid.image_width, grid.image_height)
    visible = patch_masks(boxes.reshape(-1, 4), original_size=size, grid=grid, patch_coverage=patch_coverage)
    return visible.reshape(*boxes.shape[:-1], grid.count)


def normalised(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] in 0..255 -> float32 in -1..1 (mean and deviation 0.5)."""
    if images.device.type == "cpu":  # not by torch, whose threads would keep spinning beside the loading threads
        values = np.empty(images.shape, np.float32)
        rows, width = images.shape[1] * images.shape[2], images.shape[3]
        for image, value in zip(images.numpy(), values, strict=True):  # one image at a time stays in the cache
            cv2.LUT(image.reshape(rows, width), _NORMALISED, dst=value.reshape(rows, width))
        return torch.from_numpy(values)
    scaled = images.to(torch.float32)
    # (x / 255 - MEAN) / STD in a single pass over the new tensor; new_tensor would wait for the device
    return torch.add(scaled.new_full((), -MEAN / STD), scaled, alpha=1 / (255 * STD), out=scaled)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """CPU values on a device, to a GPU without waiting: what still runs there is not waited for, and torch keeps the
    pinned memory until it is copied."""
    if values.is_floating_point() and device.type == "mps":  # it has no float64
        values = values.float()
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)
