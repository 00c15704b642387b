"""Part boxes in original pixels -> which part is visible in which patch of the model's input."""

from dataclasses import dataclass

import torch
from torch import Tensor

_TOLERANCE = 1e-9  # of the covered fraction: a box that covers exactly the threshold passes despite rounding


@dataclass(frozen=True)
class PatchGrid:
    """Where the patches of a ViT lie in its resized input. All lengths in pixels of that input.

    Patch (row, column) is the square of `patch` pixels whose top left corner is (row, column) * `stride`;
    patches are numbered row by row.
    """

    image_height: int
    image_width: int
    patch: int
    stride: int

    @property
    def rows(self) -> int:
        return (self.image_height - self.patch) // self.stride + 1

    @property
    def columns(self) -> int:
        return (self.image_width - self.patch) // self.stride + 1

    @property
    def count(self) -> int:
        """Number of patches L."""
        return self.rows * self.columns


def patch_masks(boxes: Tensor, original_size: tuple[int, int], grid: PatchGrid, patch_coverage: float) -> Tensor:
    """Mark the patches that each part's box covers.

    Args:
        boxes: (R, 4) float x_min, y_min, x_max, y_max in pixels of the original image, maxima exclusive; they may
            leave the image. A row with NaN is a part without a box. A reversed box covers nothing.
        original_size: width and height of the original image in pixels; the model's input is this image resized to
            the grid's height and width without keeping its aspect.
        grid: the patches of the model's input.
        patch_coverage: in (0, 1]; the part is visible in a patch if its box covers at least this fraction of the patch.
    Returns:
        (R, L) bool, patches row by row. A part without a box is visible in no patch.
    """
    width, height = original_size
    corners = boxes.to(torch.float64)  # (R, 4)
    across = _overlaps(corners[:, 0::2] * grid.image_width / width, grid.columns, grid)  # (R, columns)
    down = _overlaps(corners[:, 1::2] * grid.image_height / height, grid.rows, grid)  # (R, rows)
    covered = down[:, :, None] * across[:, None, :] / grid.patch**2  # (R, rows, columns), 0..1 or NaN
    return (covered >= patch_coverage - _TOLERANCE).flatten(1)  # NaN compares as False


def _overlaps(spans: Tensor, count: int, grid: PatchGrid) -> Tensor:
    """spans (R, 2) start and end along one axis -> (R, count) pixels of each patch inside the span."""
    starts = torch.arange(count, dtype=spans.dtype, device=spans.device) * grid.stride  # (count,)
    first = torch.maximum(spans[:, :1], starts)
    last = torch.minimum(spans[:, 1:], starts + grid.patch)
    return (last - first).clamp_min(0)
