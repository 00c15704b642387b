"""How the trained model sees a few training images, for looking at: its masks block by block beside the label boxes,
and where its part tokens look."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from reid.data.person_images import Batch, PersonImages, in_order, load_batches
from reid.data.transforms import TESTING, normalised
from reid.evaluation.results import Examples, read_examples, write_examples
from reid.model.muva import Muva
from reid.protocols.protocol import Protocol, training_rows
from reid.training.run_folder import read_image_ids
from shared.datasets import locate
from shared.errors import DataError, DgreidError
from shared.manifest import read_manifest
from shared.schemas import ImageStatus, ManifestRow
from shared.workspace import Workspace

log = logging.getLogger(__name__)

IMAGES = 6  # of all sources together


def keep_examples(
    run_folder: Path,
    protocol: Protocol,
    workspace: Workspace,
    fabric: Fabric,
    *,
    model_sha256: str,
    build: Callable[[], Muva],
) -> None:
    """Write the run's `Examples`, unless they are of this model already. Source images that are gone cost the examples,
    not the evaluation."""
    try:
        read_examples(run_folder, model_sha256)
        return
    except DataError:
        pass
    try:
        rows = _chosen(run_folder, protocol, workspace)
        if rows and fabric.is_global_zero:
            write_examples(run_folder, _seen(rows, workspace, fabric, build(), model_sha256))
    except DgreidError as err:
        log.warning("no examples of the model's masks: %s", err)


def _chosen(run_folder: Path, protocol: Protocol, workspace: Workspace) -> list[ManifestRow]:
    """IMAGES images that were trained on, spread over the sources, the same ones every time."""
    used, found = read_image_ids(run_folder), []
    for place, source in enumerate(protocol.sources):
        rows = training_rows(protocol, source, read_manifest(workspace.manifest(source)))
        own = [row for row in rows if row.status == ImageStatus.OK and (used is None or row.image_id in used)]
        own.sort(key=lambda row: hashlib.md5(row.image_id.encode()).hexdigest())  # neighbours are near-duplicates
        share = IMAGES // len(protocol.sources) + (place < IMAGES % len(protocol.sources))
        found += own[:share]
    return found


def _seen(
    rows: Sequence[ManifestRow], workspace: Workspace, fabric: Fabric, model: Muva, model_sha256: str
) -> Examples:
    files = [locate(row.dataset, workspace.data_root) / row.path for row in rows]
    images, model = PersonImages(files, model.grid, TESTING), model.to(fabric.device).eval()
    visible, attention = [], []
    with torch.no_grad():
        for batch in load_batches(images, in_order(len(rows), len(rows)), 0):
            pixels = Batch(*fabric.to_device(tuple(batch))).images
            masks, looks = model.image_encoder.part_attention(normalised(pixels))
            visible.append(masks.cpu().transpose(0, 1))
            attention.append(looks.float().cpu())
    shape = model.grid.rows, model.grid.columns
    blocks, parts = visible[0].shape[1:3]
    return Examples(
        datasets=np.array([row.dataset for row in rows]),
        paths=np.array([row.path for row in rows]),
        visible=torch.cat(visible).reshape(len(rows), blocks, parts, *shape).numpy(),
        attention=torch.cat(attention).reshape(len(rows), parts, *shape).numpy(),
        model_sha256=model_sha256,
    )
