"""What trains in which stage, with which optimiser and at which rate (Sec. 4 and 5 of the method), and averaged
weights."""

import copy
import math
from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import nn

from reid.config import Stage1Config, Stage2Config
from reid.model.muva import Muva


def freeze_for_stage1(model: Muva) -> list[str]:
    """Leave only the prompts' context vectors trainable; returns the names of what trains."""
    return _train_only(model, lambda name: name == "prompts.contexts")


def freeze_for_stage2(model: Muva, config: Stage2Config) -> list[str]:
    """Train the image side, freeze the text side; returns the names of what trains.

    Frozen: text encoder, prompts, the neck's bias, and the patch projection unless the configuration trains it.
    """

    def trains(name: str) -> bool:
        if name == "image_encoder.conv1.weight":
            return config.train_patch_projection
        return name.startswith(("image_encoder.", "classifier.")) or name == "bnneck.weight"

    return _train_only(model, trains)


def _train_only(model: nn.Module, trains: Callable[[str], bool]) -> list[str]:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(name))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def prompt_optimizer(model: Muva, config: Stage1Config, *, fused: bool = False) -> torch.optim.Adam:
    """Freeze for stage 1 and return Adam with coupled weight decay (not AdamW) over the prompts. fused: as for
    `image_optimizer`."""
    freeze_for_stage1(model)
    group = {"params": [model.prompts.contexts], "lr_factor": 1.0}
    return torch.optim.Adam([group], lr=stage1_lr(config, 1), weight_decay=config.weight_decay, fused=fused or None)


def image_optimizer(model: Muva, config: Stage2Config, *, fused: bool = False) -> torch.optim.Adam:
    """Freeze for stage 2 and return Adam with coupled weight decay over what trains.

    The mask predictors are a group of their own: `mask_lr_factor` times the rate, no weight decay. fused: one kernel
    for all parameters, on GPUs; under a gradient scaler it also unscales, without waiting, and then gradients cannot be
    clipped.
    """
    freeze_for_stage2(model, config)
    predictors = list(model.image_encoder.mask_predictors.parameters())
    predictor_ids = {id(parameter) for parameter in predictors}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in predictor_ids]
    groups = [{"params": others, "weight_decay": config.weight_decay, "lr_factor": 1.0}]
    if predictors:
        groups.append({"params": predictors, "weight_decay": 0.0, "lr_factor": config.mask_lr_factor})
    optimizer = torch.optim.Adam(groups, fused=fused or None)
    set_learning_rate(optimizer, stage2_lr(config, 1))
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group its own multiple of the base rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def stage1_lr(config: Stage1Config, epoch: int) -> float:
    """Base rate of a 1-based epoch: linear from `warmup_lr`, then a cosine over all epochs down to `final_lr`.

    The cosine's phase counts from the start of training, not from the end of the warm-up, and the last epoch is its
    end (Loshchilov and Hutter 2017).
    """
    if epoch < config.warmup_epochs:
        return config.warmup_lr + (config.lr - config.warmup_lr) * epoch / config.warmup_epochs
    cosine = 0.5 * (1 + math.cos(math.pi * min(epoch / config.epochs, 1.0)))
    return config.final_lr + (config.lr - config.final_lr) * cosine


def stage2_lr(config: Stage2Config, epoch: int) -> float:
    """Base rate of a 1-based epoch: linear from `warmup_factor` times the rate, then a fall at every milestone.

    A milestone's own epoch is the first with the lower rate.
    """
    rate = config.lr * config.decay ** bisect_right(config.milestones, epoch)
    if epoch < config.warmup_epochs:
        done = epoch / config.warmup_epochs
        rate *= config.warmup_factor * (1 - done) + done
    return rate


class WeightAverage:
    """Exponential moving average of weights and batch statistics: average <- decay * average + (1 - decay) * value.

    The first average is the model as it is now. (torch's AveragedModel waits for the device in every update.)

    Args:
        decay: in (0, 1).
    """

    def __init__(self, model: Muva, decay: float) -> None:
        self.module, self._decay = copy.deepcopy(model), decay

    @torch.no_grad()
    def update(self, model: Muva) -> None:
        """After an optimiser step; counters are copied."""
        pairs = list(zip(_values(self.module), _values(model), strict=True))
        averages, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, values, 1 - self._decay)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)


def _values(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
