"""What both stages of one training run share: configuration, training images, device, folder."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from reid.config import BatchConfig, RunConfig
from reid.images import PersonImages
from reid.part_masks import PatchGrid
from reid.samplers import IdentityBatches
from reid.training_set import TrainingSet
from reid.transforms import TESTING, TRAINING
from shared.errors import ConfigError, DgreidError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    config: RunConfig
    data: TrainingSet
    folder: Path  # the run folder
    fabric: Fabric
    bank: PersonImages  # every training image as it is
    augmented: PersonImages  # the same images, resized and flipped as training wants them

    @property
    def labels(self) -> Tensor:
        """long [N] on the CPU."""
        return torch.from_numpy(self.data.labels)

    def batches(self, config: BatchConfig) -> IdentityBatches:
        found = IdentityBatches(
            self.data.labels.tolist(),
            identities_per_batch=config.identities_per_batch,
            images_per_identity=config.images_per_identity,
            seed=self.config.seed,
        )
        if found.note:
            log.warning(found.note)
        return found


def make_job(config: RunConfig, data: TrainingSet, data_root: Path, folder: Path, grid: PatchGrid) -> Job:
    """Raises ConfigError when the device or precision cannot be had, DataError when a data set is gone."""
    files, share = data.files(data_root), config.data.visible_share
    return Job(
        config=config,
        data=data,
        folder=folder,
        fabric=make_fabric(config.device, config.precision),
        bank=PersonImages(files, grid, TESTING, boxes=data.boxes, visible_share=share),
        augmented=PersonImages(
            files, grid, TRAINING, boxes=data.boxes, visible_share=share, flip=config.data.flip, seed=config.seed
        ),
    )


def make_fabric(device: str, precision: Literal["32-true", "bf16-mixed", "16-mixed"]) -> Fabric:
    """One device ("auto", "cpu", "cuda", "mps") with a precision. Raises ConfigError when this machine has it not."""
    try:
        fabric = Fabric(accelerator=device, devices=1, precision=precision)
    except (RuntimeError, ValueError) as err:  # Fabric's MisconfigurationException and torch's own are RuntimeErrors
        reason = str(err).splitlines()[0]
        raise ConfigError(f"device={device} cannot be used: {reason}", fix="set device=auto or device=cpu") from err
    if precision == "16-mixed" and fabric.device.type == "cpu":
        raise ConfigError("precision 16-mixed needs a GPU", fix="set precision=32-true, or precision=bf16-mixed")
    return fabric


def describe_training(model: nn.Module, stage: str) -> None:
    """Log how many parameters train and how many are frozen, in total and per top-level part of the model."""
    lines = []
    for name, part in [("all", model), *model.named_children()]:
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in part.parameters() if not p.requires_grad)
        lines.append(f"{name} {trained:,} trained, {frozen:,} frozen")
    log.info("%s parameters: %s", stage, "; ".join(lines))


def require_same(found: dict[str, Any], expected: dict[str, str], path: Path) -> None:
    """Refuse a file that was made for other data. Raises DgreidError naming what differs."""
    differing = [key for key, value in expected.items() if found.get(key) != value]
    if differing:
        raise DgreidError(
            f"the file belongs to another training: {', '.join(differing)} differ",
            path=path,
            fix="restore the manifests and labels this run was started with, or start a new run with RUN=<name>",
        )
