"""Features of many images in large batches without gradients: the feature bank of the source images, under
pseudo-label masks, and the embeddings of test images, under predicted masks."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from reid.data.person_images import Batch, PersonImages, in_order, load_batches
from reid.data.transforms import normalised
from reid.inference.devices import gathered, padded_share
from reid.model.muva import Muva, part_slices
from shared.progress import Progress

PINNED_BYTES = 2 * 2**30  # of features on their way from the device
SENT_ROWS = 32_768  # features sent from process to process at a time


def bank_features(
    model: Muva,
    images: PersonImages,
    fabric: Fabric,
    *,
    after_neck: bool,
    batch_size: int,
    workers: int,
    absent_as_nan: bool = False,
    progress: Progress | None = None,
) -> Tensor:
    """Features [N, F] float32 of source images with their pseudo-label masks, in eval mode, not normalised.

    after_neck: False gives f before the BatchNorm (stage 1), True after it (the memory of stage 2).
    absent_as_nan: True puts NaN into the slices of parts that are visible in no patch of the image.
    """

    def features(batch: Batch) -> Tensor:
        encoded = model.encode_images(normalised(batch.images), visible=batch.visible).features
        found = model.neck(encoded) if after_neck else encoded
        if absent_as_nan:
            found = found.masked_fill(part_slices(batch.visible.any(-1), model.feature_dim) == 0, torch.nan)
        return found

    return _in_batches(model, images, fabric, features, batch_size, workers, progress)


def retrieval_features(
    model: Muva,
    images: PersonImages,
    fabric: Fabric,
    *,
    batch_size: int,
    workers: int,
    progress: Progress | None = None,
) -> np.ndarray:
    """Embeddings [N, F] float32 of test images, L2-normalised, with predicted masks."""

    def features(batch: Batch) -> Tensor:
        return model.retrieval_features(normalised(batch.images))

    return _in_batches(model, images, fabric, features, batch_size, workers, progress).numpy()


def features_and_masks(
    model: Muva,
    images: PersonImages,
    fabric: Fabric,
    *,
    batch_size: int,
    workers: int,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings as `retrieval_features`, and which patches show which part in the last layer: bool [N, R, h, w]; R is
    0 for a model without parts."""
    encoder, grid = model.image_encoder, model.grid

    def both(batch: Batch) -> Tensor:
        features, mask_logits = model.embed(normalised(batch.images))
        if mask_logits is None:
            return features
        visible = encoder.visible_patches(mask_logits[-1])
        return torch.cat([features, visible.flatten(1).to(features.dtype)], dim=1)

    found = _in_batches(model, images, fabric, both, batch_size, workers, progress)
    features, visible = found[:, : model.feature_dim].contiguous(), found[:, model.feature_dim :].bool()
    shape = (len(images), visible.shape[1] // grid.count, grid.rows, grid.columns)
    return features.numpy(), visible.numpy().reshape(shape)


def identity_means(features: Tensor, labels: Tensor, num_identities: int) -> Tensor:
    """L2-normalised mean feature [K, F] of every identity; features [N, F], labels long [N] naming all K of them.

    Each entry's mean is over the images where it is not NaN; where there is none it is 0.
    """
    known = ~features.isnan()
    zeros = torch.zeros(num_identities, features.shape[1])
    sums = zeros.index_add(0, labels, features.where(known, 0.0))
    counts = zeros.index_add(0, labels, known.float())
    return F.normalize(sums / counts.clamp_min(1), dim=1)


@torch.no_grad()
def _in_batches(
    model: Muva,
    images: PersonImages,
    fabric: Fabric,
    compute: Callable[[Batch], Tensor],
    batch_size: int,
    workers: int,
    progress: Progress | None,
) -> Tensor:
    """Rows of `compute` over all images in order, on the CPU; the model's training mode is restored afterwards.

    Several processes compute a share each and all return all rows.
    """
    was_training = model.training
    model.eval()
    share, done = padded_share(len(images), fabric), 0
    plan = [[share[place] for place in places] for places in in_order(len(share), batch_size)]
    if fabric.device.type == "cuda" and len(plan) > 1:  # one batch size: a compiled model is compiled once
        plan[-1] += [share[-1]] * (batch_size - len(plan[-1]))
    found = torch.empty(0)
    try:
        with fabric.autocast():
            for batch in load_batches(images, plan, workers, fabric.device):
                rows = compute(batch).float()
                if not done:
                    found = _host_rows(len(share), rows)
                rows = rows[: len(share) - done]
                found[done : done + len(rows)].copy_(rows, non_blocking=True)
                done += len(rows)
                if progress:
                    progress.advance(len(rows))
        if found.is_pinned():
            torch.cuda.synchronize(fabric.device)
    finally:
        model.train(was_training)
    if fabric.world_size > 1:
        found = _of_all_processes(found, fabric)
    return found[: len(images)]


def _host_rows(count: int, like: Tensor) -> Tensor:
    """[count, F] on the CPU; in pinned memory, if that is not much of it, so that copies to it need no waiting."""
    pin = like.is_cuda and count * like.shape[1] * like.element_size() <= PINNED_BYTES
    return torch.empty(count, like.shape[1], dtype=like.dtype, pin_memory=pin)


def _of_all_processes(rows: Tensor, fabric: Fabric) -> Tensor:
    """The rows of all processes, each having equally many; sent in blocks, from the device, where every backend can."""
    everyones = torch.empty(fabric.world_size, *rows.shape, dtype=rows.dtype)
    for start in range(0, len(rows), SENT_ROWS):
        block = rows[start : start + SENT_ROWS]
        sent = gathered(fabric.to_device(block)).cpu()
        everyones[:, start : start + len(block)] = sent.view(fabric.world_size, *block.shape)
    return everyones.flatten(0, 1)
