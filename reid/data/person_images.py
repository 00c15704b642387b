"""Image files as batches: decoded, resized, optionally augmented, with the visible patches of every part."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg

from reid.data.augment import Augmentation
from reid.data.part_masks import PatchGrid
from reid.data.transforms import Interpolation, Sample, resized, visible_patches
from shared.errors import DgreidError
from shared.images import UnreadableImageError, decode, is_plain_jpeg, opened, read_file

CACHE_BYTES = 512 * 2**20  # sets whose resized pixels fit are decoded once; larger ones by `data.workers` processes


class Batch(NamedTuple):
    images: Tensor  # uint8 [B, 3, H, W]
    visible: Tensor  # bool [B, R, L], from the part boxes
    indices: Tensor  # long [B], positions in the data set


class PersonImages(Dataset[Batch]):
    """N image files with their part boxes, resized to the model's input.

    Args:
        files: the images.
        grid: the model's patch grid; its image size is the size resized to.
        mode: interpolation of the resize.
        boxes: float [N, R, 4] in pixels of the original images, NaN rows where a part has no box; None: no parts.
        patch_coverage: a part is visible in a patch if its box covers at least this fraction of the patch.
        augmentation: of image and boxes, drawn anew in every epoch.
    """

    def __init__(
        self,
        files: Sequence[Path],
        grid: PatchGrid,
        mode: Interpolation,
        *,
        boxes: np.ndarray | None = None,
        patch_coverage: float = 0.5,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.files, self.grid, self.mode = list(files), grid, mode
        self.boxes = np.empty((len(self.files), 0, 4)) if boxes is None else boxes
        self.patch_coverage, self.augmentation = patch_coverage, augmentation
        self.epoch = 0  # set before each pass over the images
        self._size = (3, grid.image_height, grid.image_width)
        self.cached = len(self.files) * math.prod(self._size) <= CACHE_BYTES
        self._known = np.zeros(len(self.files), dtype=bool)
        self._pixels = torch.empty((len(self.files), *self._size) if self.cached else 0, dtype=torch.uint8)
        self._boxes = torch.empty(self.boxes.shape if self.cached else 0, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: list[int]) -> Batch | str:
        """A batch, or an error message: an exception would lose its type on the way out of a worker process."""
        images = torch.empty(len(indices), *self._size, dtype=torch.uint8)
        boxes = torch.empty(len(indices), *self.boxes.shape[1:], dtype=torch.float64)
        try:
            for place, index in enumerate(indices):
                sample = self._sample(index)
                if self.augmentation:
                    sample = self.augmentation.apply(sample, epoch=self.epoch, index=index)
                images[place], boxes[place] = sample
        except UnreadableImageError as err:
            return err.what + f" [{err.path}]"
        return Batch(images, visible_patches(boxes, self.grid, self.patch_coverage), torch.tensor(indices))

    def _sample(self, index: int) -> Sample:
        if self.cached and self._known[index]:
            return Sample(self._pixels[index], self._boxes[index])
        sample = resized(load_pixels(self.files[index]), self.boxes[index], self._size[1:], self.mode)
        if self.cached:
            self._pixels[index], self._boxes[index], self._known[index] = sample.image, sample.boxes, True
        return sample


def load_pixels(path: Path) -> Tensor:
    """RGB, uint8 [3, H, W], as `shared.images.load_image` reads it. Raises UnreadableImageError naming the file.

    Pillow reads every header. A plain JPEG is then decoded by torchvision, the same library in half the time.
    """
    content = read_file(path)
    with opened(content, path) as image:
        plain = is_plain_jpeg(image)
    if plain:
        try:
            pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
            return pixels
        except RuntimeError:  # Pillow reports what is wrong with it
            pass
    return torch.from_numpy(np.array(decode(content, path))).permute(2, 0, 1)


def load_batches(images: PersonImages, batches: Sequence[Sequence[int]], workers: int) -> Iterator[Batch]:
    """The given batches of image indices, in order, loaded by `workers` processes (none for a cached set).

    Raises DgreidError naming the file when one can no longer be read.
    """
    loader: DataLoader[Batch | str] = DataLoader(
        images,
        batch_sampler=[list(batch) for batch in batches],
        num_workers=0 if images.cached else workers,
        collate_fn=_identity,
        generator=torch.Generator(),  # otherwise every pass draws from the global one
    )
    for batch in loader:
        if isinstance(batch, str):
            raise DgreidError(
                f"an image changed after the data set was scanned: {batch}",
                fix="restore the file, or scan the data set again (dgreid manifest <name>) and start a new run",
            )
        yield batch


def in_order(count: int, batch_size: int) -> list[range]:
    """All indices below `count` in batches of at most `batch_size`."""
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def _identity(batch: Any) -> Any:
    return batch
