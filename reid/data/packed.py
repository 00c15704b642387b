"""Packed images as a sequence; reid.data.packing makes and opens them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def record_type(size: tuple[int, int]) -> np.dtype:
    """One image of a pack: `size`, its original height and width in pixels, and `pixels`, uint8 [3, *size]."""
    return np.dtype([("size", "<i4", 2), ("pixels", "u1", (3, *size))])


@dataclass(frozen=True)
class PackedImages:
    """Images of one or several packs as one sequence: image i is record records[i] of packs[pack_of[i]]."""

    packs: tuple[np.memmap, ...]
    pack_of: NDArray[np.int32]
    records: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.records)

    def take(self, indices: Sequence[int], out: Tensor) -> NDArray[np.int32]:
        """Copy images to `out`, uint8 [B, 3, H, W] on the CPU; returns their original sizes [B, 2], height and width.

        The interpreter is let go of while pixels are copied."""
        pixels, sizes = out.numpy(), np.empty((len(indices), 2), np.int32)
        for place, index in enumerate(indices):
            record = self.packs[self.pack_of[index]][self.records[index]]
            pixels[place], sizes[place] = record["pixels"], record["size"]
        return sizes
