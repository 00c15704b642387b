"""What both stages of one training run share: configuration, training images, device, folder."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from reid.config import BatchConfig, RunConfig
from reid.data.augment import Augmentation
from reid.data.part_masks import PatchGrid
from reid.data.person_images import PersonImages
from reid.data.samplers import IdentityBatches
from reid.data.training_set import TrainingSet
from reid.data.transforms import TESTING, TRAINING
from reid.training.validation import HeldOut
from shared.errors import ConfigError, DgreidError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    config: RunConfig
    data: TrainingSet
    folder: Path  # the run folder
    fabric: Fabric
    bank: PersonImages  # every training image as it is
    augmented: PersonImages  # the same images, resized and changed at random as training wants them
    held_out: HeldOut | None  # whom the epoch is chosen by
    held_out_images: PersonImages | None

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
    data_root: Path,
    folder: Path,
    grid: PatchGrid,
    held_out: HeldOut | None = None,
) -> Job:
    """With several devices this starts the other processes and joins them, once.

    Raises ConfigError when a device or precision cannot be had, DataError when a data set is gone.
    """
    files, share = data.files(data_root), config.data.visible_share
    fabric = make_fabric(config.device, config.precision, config.devices)
    fabric.launch()
    if not fabric.is_global_zero:
        logging.disable(logging.INFO)  # one of them tells
    return Job(
        config=config,
        data=data,
        folder=folder,
        fabric=fabric,
        bank=PersonImages(files, grid, TESTING, boxes=data.boxes, visible_share=share),
        augmented=PersonImages(
            files,
            grid,
            TRAINING,
            boxes=data.boxes,
            visible_share=share,
            augmentation=Augmentation.of(config.data, config.seed),
        ),
        held_out=held_out,
        held_out_images=PersonImages(held_out.data.files(data_root), grid, TESTING) if held_out else None,
    )


def make_fabric(device: str, precision: Literal["32-true", "bf16-mixed", "16-mixed"], devices: int = 1) -> Fabric:
    """Devices of one kind ("auto", "cpu", "cuda", "mps") with a precision; several are a process each.

    Raises ConfigError when this machine has them not.
    """

    # what a broadcast would send is the same in all processes already, see reid.inference.parallel
    def strategy() -> DDPStrategy | str:
        return DDPStrategy(broadcast_buffers=False) if devices > 1 else "auto"

    try:
        kind = Fabric(accelerator=device, devices=devices, strategy=strategy()).device.type
    except (RuntimeError, ValueError) as err:  # Fabric's MisconfigurationException and torch's own are RuntimeErrors
        reason = str(err).splitlines()[0]
        raise ConfigError(
            f"device={device} devices={devices} cannot be used: {reason}",
            fix="set device=auto or device=cpu, devices=1",
        ) from err
    if precision == "16-mixed" and kind == "cpu":  # Fabric would take another precision and only warn
        raise ConfigError("precision 16-mixed needs a GPU", fix="set precision=32-true, or precision=bf16-mixed")
    return Fabric(accelerator=device, devices=devices, strategy=strategy(), precision=precision)


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
