"""What both training stages use: configuration, training images, device, run folder."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from reid.config import BatchConfig, RunConfig
from reid.data.augment import Augmentation
from reid.data.packing import packed_by_first
from reid.data.part_masks import PatchGrid
from reid.data.person_images import PersonImages
from reid.data.samplers import IdentityBatches
from reid.data.training_set import TrainingSet
from reid.data.transforms import TESTING, TRAINING, Interpolation
from reid.inference.devices import joined
from reid.training.trackers import Tracker
from reid.training.validation import HeldOut
from shared.errors import ConfigError
from shared.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    config: RunConfig
    data: TrainingSet
    folder: Path  # the run folder
    fabric: Fabric
    bank: PersonImages  # the training images without augmentation, for the feature bank
    augmented: PersonImages  # the same images with augmentation
    held_out: HeldOut | None  # identities that the checkpoint is selected on
    held_out_images: PersonImages | None
    trackers: Sequence[Tracker] = ()  # in the process that writes

    @property
    def labels(self) -> Tensor:
        """long [N] on the CPU."""
        return torch.from_numpy(self.data.labels)

    def batches(self, config: BatchConfig) -> IdentityBatches:
        found = IdentityBatches(
            self.data.labels,
            identities_per_batch=config.identities_per_batch,
            images_per_identity=config.images_per_identity,
            seed=self.config.seed,
            domains=self.data.datasets if config.balance_domains else None,
        )
        if found.note:
            log.warning(found.note)
        if (size := found.identities * found.images_per_identity) % self.fabric.world_size:
            raise ConfigError(
                f"batches of {size} images cannot be shared equally by devices={self.fabric.world_size}",
                fix="set devices to a divisor, or change identities_per_batch or images_per_identity",
            )
        return found


def make_job(
    config: RunConfig,
    data: TrainingSet,
    workspace: Workspace,
    folder: Path,
    grid: PatchGrid,
    held_out: HeldOut | None = None,
    fabric: Fabric | None = None,
) -> Job:
    """Images are packed where there is room.

    Args:
        fabric: the devices; None: those of the configuration, joined now.

    Raises ConfigError when a device or precision is unavailable, DataError when a data set is gone, DgreidError when
    an image has changed since it was scanned.
    """
    fabric = fabric or joined(config)

    def images(chosen: TrainingSet, mode: Interpolation, *, parts: bool, augmented: bool = False) -> PersonImages:
        return PersonImages(
            chosen.files(workspace.data_root),
            grid,
            mode,
            boxes=chosen.boxes if parts else None,
            patch_coverage=config.data.patch_coverage,
            augmentation=Augmentation.of(config.data, config.seed) if augmented else None,
            image_ids=chosen.image_ids,
            packed=packed_by_first(
                fabric,
                chosen.datasets,
                chosen.paths,
                workspace=workspace,
                size=(grid.image_height, grid.image_width),
                mode=mode,
                limit_bytes=config.data.cache_bytes,
            ),
        )

    return Job(
        config=config,
        data=data,
        folder=folder,
        fabric=fabric,
        bank=images(data, TESTING, parts=True),
        augmented=images(data, TRAINING, parts=True, augmented=True),
        held_out=held_out,
        held_out_images=images(held_out.data, TESTING, parts=False) if held_out else None,
    )


def describe_training(model: nn.Module, stage: str) -> None:
    """Log how many parameters train and how many are frozen, in total and per top-level part of the model."""
    lines = []
    for name, part in [("all", model), *model.named_children()]:
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in part.parameters() if not p.requires_grad)
        lines.append(f"{name} {trained:,} trained, {frozen:,} frozen")
    log.info("%s parameters: %s", stage, "; ".join(lines))
