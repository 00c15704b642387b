"""Features of many images in large batches without gradients: the feature bank of the source images, which sees
through pseudo-label masks, and the embeddings of test images, for which the model predicts its masks itself."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from reid.images import Batch, PersonImages, in_order, load_batches
from reid.model.muva import Muva
from reid.transforms import normalised
from shared.progress import Progress


def bank_features(
    model: Muva,
    images: PersonImages,
    fabric: Fabric,
    *,
    after_neck: bool,
    batch_size: int,
    workers: int,
    progress: Progress | None = None,
) -> Tensor:
    """Features [N, F] float32 of source images with their pseudo-label masks, in eval mode, not normalised.

    after_neck: False gives f before the BatchNorm (stage 1), True after it (the memory of stage 2).
    """

    def features(batch: Batch) -> Tensor:
        encoded = model.encode_images(normalised(batch.images), visible=batch.visible).features
        return model.neck(encoded) if after_neck else encoded

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


def predicted_masks(model: Muva, images: PersonImages, fabric: Fabric, *, batch_size: int, workers: int) -> np.ndarray:
    """Which patches show which part in the last layer: bool [N, R, h, w]; R is 0 for a model without parts."""
    grid = model.grid

    def masks(batch: Batch) -> Tensor:
        logits = model.encode_images(normalised(batch.images)).mask_logits
        if logits is None:
            return torch.zeros(len(batch.images), 0, grid.count)
        encoder = model.image_encoder
        return torch.sigmoid(logits[-1] / encoder.mask_temperature) > encoder.gate_threshold

    found = _in_batches(model, images, fabric, masks, batch_size, workers, None)
    return found.bool().numpy().reshape(len(images), -1, grid.rows, grid.columns)


def identity_means(features: Tensor, labels: Tensor, num_identities: int) -> Tensor:
    """L2-normalised mean feature [K, F] of every identity; features [N, F], labels long [N] naming all K of them."""
    sums = torch.zeros(num_identities, features.shape[1]).index_add_(0, labels, features)
    counts = torch.bincount(labels, minlength=num_identities).unsqueeze(1)
    return F.normalize(sums / counts, dim=1)


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
    """Rows of `compute` over all images in order, on the CPU; the model's training mode is put back afterwards."""
    was_training = model.training
    model.eval()
    rows = []
    try:
        with fabric.autocast():
            for batch in load_batches(images, in_order(len(images), batch_size), workers):
                rows.append(compute(Batch(*fabric.to_device(tuple(batch)))).float().cpu())
                if progress:
                    progress.advance(len(batch.indices))
    finally:
        model.train(was_training)
    return torch.cat(rows)
