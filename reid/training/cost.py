"""What an epoch of stage 2 will cost, estimated before it starts from two images through the encoder."""

import time
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch.utils.flop_counter import FlopCounterMode

from reid.model.muva import Muva

TRAINING_FACTOR = 3  # forward and backward against forward alone
_PROBE = 2  # images


@dataclass(frozen=True)
class EpochCost:
    tflop: float  # 10^12 multiplications and additions, attention scores aside
    minutes: float  # of encoding at the probe's speed; larger batches are faster on a GPU

    def __str__(self) -> str:
        return f"about {self.tflop:.3g} TFLOP, at most about {self.minutes:.1f} min at the speed of {_PROBE} images"


@torch.no_grad()
def epoch_cost(model: Muva, fabric: Fabric, *, bank_images: int, trained_images: int) -> EpochCost:
    """Cost of an epoch that encodes `bank_images` without and `trained_images` with gradients, on all devices."""
    grid, was_training = model.grid, model.training
    images = torch.zeros(_PROBE, 3, grid.image_height, grid.image_width, device=fabric.device)
    model.eval()
    with fabric.autocast(), FlopCounterMode(display=False) as counter:
        model.encode_images(images)
    started = time.perf_counter()
    with fabric.autocast():
        model.encode_images(images).features.sum().item()  # waits for the device
    seconds = time.perf_counter() - started
    model.train(was_training)
    forwards = (bank_images + TRAINING_FACTOR * trained_images) / _PROBE
    return EpochCost(forwards * counter.get_total_flops() / 1e12, forwards * seconds / 60 / fabric.world_size)
