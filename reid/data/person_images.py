"""Images as batches on a device: from a pack or decoded, augmented, with the visible patches of every part.

Batches are made ahead of their use by a thread. On a GPU they travel from pinned memory while the step before runs.
"""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from reid.data.augment import Augmentation, Changes
from reid.data.decoding import changed_since, load_pixels, load_scanned_pixels, resized_pixels
from reid.data.packed import PackedImages
from reid.data.part_masks import PatchGrid
from reid.data.transforms import Interpolation, resized_boxes, visible_patches
from shared.images import UnreadableImageError

__all__ = ["Batch", "PersonImages", "in_order", "load_batches", "load_pixels"]

AHEAD = 3  # batches that are ready before they are asked for
Item = TypeVar("Item")


class Batch(NamedTuple):
    images: Tensor  # uint8 [B, 3, H, W]
    visible: Tensor  # bool [B, R, L], from the part boxes
    indices: Tensor  # long [B], positions in the data set


class PersonImages:
    """N images with their part boxes, resized to the model's input.

    Args:
        files: the images.
        grid: the model's patch grid; its image size is the size resized to.
        mode: interpolation of the resize.
        boxes: float [N, R, 4] in pixels of the original images, NaN rows where a part has no box; None: no parts.
        patch_coverage: a part is visible in a patch if its box covers at least this fraction of the patch.
        augmentation: of image and boxes, redrawn in every epoch.
        image_ids: of the files as they were scanned; one that has changed since is refused. None: not checked.
        packed: the same images, decoded before, of the grid's size; None: the files are decoded in every pass.
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
        image_ids: Sequence[str] | None = None,
        packed: PackedImages | None = None,
    ) -> None:
        self.files, self.grid, self.mode = files, grid, mode
        self.boxes = np.empty((len(files), 0, 4)) if boxes is None else boxes
        self.patch_coverage, self.augmentation = patch_coverage, augmentation
        self.image_ids, self.packed = image_ids, packed
        self.epoch = 0  # set before each pass over the images
        self.size = (grid.image_height, grid.image_width)

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Sequence[int]) -> Batch:
        """One batch on the CPU. Raises DgreidError naming a file that can no longer be read."""
        batch, changes = self.prepared(indices)
        return batch._replace(images=changes.images(batch.images))

    def prepared(
        self, indices: Sequence[int], *, pool: ThreadPool | None = None, pin: bool = False
    ) -> tuple[Batch, Changes]:
        """A batch on the CPU whose images are not augmented yet, and what is to be done to them; its visible patches
        are those of the augmented images. pool: of decoding threads. pin: in pinned memory, for a GPU."""
        images = torch.empty((len(indices), 3, *self.size), dtype=torch.uint8, pin_memory=pin)
        if self.packed is not None:
            originals = self.packed.take(indices, images)
        else:
            originals = self._decoded(indices, images, pool)
        changes = Changes()
        if self.augmentation:
            changes = self.augmentation.drawn(indices, epoch=self.epoch, size=self.size)
        boxes = changes.boxes(resized_boxes(self.boxes[np.asarray(indices)], originals, self.size), self.size)
        visible, places = visible_patches(boxes, self.grid, self.patch_coverage), torch.tensor(indices)
        if pin:
            visible, places = visible.pin_memory(), places.pin_memory()
        return Batch(images, visible, places), changes

    def _decoded(self, indices: Sequence[int], out: Tensor, pool: ThreadPool | None) -> np.ndarray:
        def decode(place: int) -> tuple[int, int]:
            index = indices[place]
            path = self.files[index]
            pixels = (
                load_scanned_pixels(path, self.image_ids[index]) if self.image_ids is not None else load_pixels(path)
            )
            out[place] = resized_pixels(pixels, self.size, self.mode)
            return pixels.shape[1], pixels.shape[2]

        try:
            places = range(len(indices))
            return np.array(pool.map(decode, places) if pool else [decode(place) for place in places])
        except UnreadableImageError as err:
            raise changed_since(err) from err


def load_batches(
    images: PersonImages, batches: Sequence[Sequence[int]], workers: int, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """The given batches of image indices, in order, on a device; images that are not packed are decoded by `workers`
    threads.

    Raises DgreidError naming the file when one can no longer be read.
    """
    device = torch.device(device)
    pool = ThreadPool(workers) if workers > 1 and images.packed is None else None
    ready: Generator[tuple[Batch, Changes], None, None] | None = None
    try:
        on_gpu = device.type == "cuda"
        prepared = (images.prepared(list(batch), pool=pool, pin=on_gpu) for batch in batches)
        ready = _ahead(prepared, AHEAD)
        yield from _sent_ahead(ready, device) if on_gpu else (_on(device, *one) for one in ready)
    finally:
        if ready is not None:
            ready.close()
        if pool:
            pool.terminate()


def in_order(count: int, batch_size: int) -> list[range]:
    """All indices below `count` in batches of at most `batch_size`."""
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def _on(device: torch.device, batch: Batch, changes: Changes) -> Batch:
    """The finished batch on a device; from pinned memory without waiting."""
    sent = Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))
    return sent._replace(images=changes.to(device).images(sent.images))


def _sent_ahead(prepared: Iterable[tuple[Batch, Changes]], device: torch.device) -> Iterator[Batch]:
    """Finished batches; the next one is copied and augmented on a stream of its own while this one is used.

    That stream need not wait for the user's: it reads pinned memory, which torch gives to nobody before the copy from
    it is done, and writes memory of its own, which is free again once the work queued by the user is done, too.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    before: tuple[Batch, torch.cuda.Event] | None = None

    def handed_over(batch: Batch, ready: torch.cuda.Event) -> Batch:
        user = torch.cuda.current_stream(device)
        user.wait_event(ready)
        for tensor in batch:
            tensor.record_stream(user)  # its memory is not given away while the step still reads it
        return batch

    for batch, changes in prepared:
        with torch.cuda.stream(stream):
            sent = _on(device, batch, changes)
        following = sent, stream.record_event()
        if before:
            yield handed_over(*before)
        before = following
    if before:
        yield handed_over(*before)


def _ahead(items: Iterable[Item], count: int) -> Generator[Item, None, None]:
    """The items, made by a thread, at most `count` ahead of their use; closing it stops the thread."""
    ready: queue.Queue[tuple[Any, BaseException | None] | None] = queue.Queue(count)
    stopped = threading.Event()

    def offer(entry: tuple[Any, BaseException | None] | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not offer((item, None)):
                    return
            offer(None)
        except BaseException as err:
            offer((None, err))

    thread = threading.Thread(target=make, name="batches", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            item, error = entry
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()
        thread.join()
