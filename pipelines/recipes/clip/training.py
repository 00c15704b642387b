"""Training of the pocket CLIP with open_clip's loss on captioned people; resumable after each round."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from open_clip.loss import ClipLoss
from open_clip.transformer import PatchDropout
from pydantic import Field, ValidationError
from torch import Tensor, nn

from pipelines.recipes.clip.batches import CaptionedBatch, draw_batch
from pipelines.recipes.clip.captions import tokenize
from pipelines.recipes.clip.people import People, concatenate, generated_people, real_people
from reid.config import ModelConfig, Section
from reid.data.transforms import normalised
from reid.inference.devices import make_fabric
from reid.model.backbone import load_clip
from reid.model.checkpoint import load_checkpoint, save_checkpoint
from reid.training.curves import Curves, require_finite
from reid.training.run_folder import open_run
from shared.errors import ConfigError
from shared.progress import Progress
from shared.workspace import Workspace

log = logging.getLogger(__name__)

DOMAINS = ("plaza", "campus", "mall")  # the demo tests on the fourth, which is therefore never trained on
MAX_LOGIT_SCALE = float(np.log(100))  # as CLIP (Radford et al. 2021)


class ClipTraining(Section):
    """Everything that determines the weights, except the data sets' files."""

    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    sources: tuple[str, ...] = ("3dpes", "caviar", "towncentre")  # their training identities are trained on; () = none
    identities: int = Field(1500, gt=1)  # generated people per domain
    views: int = Field(4, gt=0, le=40)  # images of each generated person
    batch: int = Field(96, gt=1)
    real_share: float = Field(0.375, ge=0, le=1)  # of a batch; without sources all people are generated
    rounds: int = Field(50, gt=0)  # of `steps` batches; a checkpoint after each
    steps: int = Field(100, gt=0)
    lr: float = Field(1e-3, gt=0)  # AdamW
    weight_decay: float = Field(0.2, ge=0)
    warmup_steps: int = Field(100, ge=0)
    patch_dropout: float = Field(0.25, ge=0, lt=1)  # fraction of the patches dropped in training (Li et al. 2023, FLIP)


def clip_training(**given: Any) -> ClipTraining:
    """Validated settings of a training. Raises ConfigError naming the first invalid value."""
    try:
        return ClipTraining(**given)
    except ValidationError as err:
        problem = err.errors()[0]
        raise ConfigError(f"{problem['loc'][0]}: {problem['msg']}", fix="correct it and run the command again") from err


class ContrastiveStep(nn.Module):
    """open_clip's loss of one batch; what Fabric wraps."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip, self.loss = clip, ClipLoss()

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """images uint8 [B, 3, H, W], tokens [B, T] -> [2]: the loss, and the accuracy of image to caption."""
        image, text, scale = self.clip(normalised(images), tokens)
        with torch.autocast(images.device.type, enabled=False):  # half precision makes the first logits equal
            image, text = image.float(), text.float()
            loss: Tensor = self.loss(image, text, scale.float())
            nearest = (image.detach() @ text.detach().T).argmax(dim=1)
        accuracy = (nearest == torch.arange(len(nearest), device=nearest.device)).float().mean()
        return torch.stack([loss, accuracy])


def train_clip(config: ClipTraining, model: ModelConfig, workspace: Workspace, folder: Path) -> Any:
    """Train in `folder`, or resume there, and return the open_clip model on the CPU, in eval mode.

    Raises:
        ConfigError: the device is unavailable, or the folder holds a training with another configuration.
        DataError: manifests or attribute words are missing.
        DgreidError: the loss is not finite.
    """
    fabric = make_fabric(config.device, config.precision)
    open_run(folder, {"training": config.model_dump(mode="json"), "architecture": model.architecture})
    clip = fresh_clip(model, config.seed)
    optimizer = torch.optim.AdamW(_parameter_groups(clip, config.weight_decay), lr=config.lr, betas=(0.9, 0.98))
    latest, history, state = folder / "latest.pt", [], None
    if latest.is_file():
        state, meta = load_checkpoint(latest)
        clip.load_state_dict(state["clip"])
        history = meta["history"]
    if len(history) < config.rounds:
        groups = _groups(config, workspace, folder)
        clip.visual.patch_dropout = PatchDropout(config.patch_dropout)
        module, fabric_optimizer = fabric.setup(ContrastiveStep(clip), optimizer)
        if state is not None:  # not before the parameters are where they stay: their moments go there, too
            optimizer.load_state_dict(state["optimizer"])
        curves = Curves(folder, history)
        for number in range(len(history) + 1, config.rounds + 1):
            curves.add(_round(module, fabric_optimizer, fabric, groups, config, clip.context_length, number, folder))
            written = {"clip": clip.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(latest, written, {"history": curves.history})
        curves.close()
        clip.visual.patch_dropout = nn.Identity()
    return clip.cpu().eval()


def fresh_clip(model: ModelConfig, seed: int) -> Any:
    """The randomly initialised model. Raises ConfigError for an unsuitable architecture."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return load_clip(model, load_weights=False)


def load_people(config: ClipTraining, workspace: Workspace, folder: Path) -> dict[str, People]:
    """All people by origin: each generated domain of the training, and all real sources under "real"."""
    cache = folder / "drawn"
    people = {f"synth_{name}": generated_people(name, config.identities, config.views, cache) for name in DOMAINS}
    return people | ({"real": real_people(config.sources, workspace)} if config.sources else {})


def _groups(config: ClipTraining, workspace: Workspace, folder: Path) -> list[tuple[People, int]]:
    """Groups of people without the held-out ones, and how many of each are in a batch."""
    trained = {name: people.split()[0] for name, people in load_people(config, workspace, folder).items()}
    real = trained.pop("real", None)
    real_count = round(config.batch * config.real_share) if real else 0
    groups = [(real, real_count)] if real else []
    groups.append((concatenate(list(trained.values())), config.batch - real_count))
    for people, count in groups:
        log.info("%d images of %d people, %d in a batch", len(people.pixels), len(people.names), count)
    return groups


def _round(
    module: Any,
    optimizer: Any,
    fabric: Fabric,
    groups: Sequence[tuple[People, int]],
    config: ClipTraining,
    context_length: int,
    number: int,
    folder: Path,
) -> dict[str, float]:
    """Train on `steps` batches and return their row of metrics.csv. A batch depends on the seed and its number only."""
    started, means = time.monotonic(), np.zeros(2)
    module.train()
    with Progress(f"pocket CLIP round {number}/{config.rounds}", config.steps * config.batch) as progress:
        for index in range(1, config.steps + 1):
            step = (number - 1) * config.steps + index
            for group in optimizer.optimizer.param_groups:
                group["lr"] = _learning_rate(config, step)
            batch = draw_batch(groups, np.random.default_rng((config.seed, step)))
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(config.seed + step)  # of the patch dropout
                images, tokens = _tensors(batch, context_length)
                measured = module(*fabric.to_device((images, tokens)))
            values = measured.detach().cpu().numpy()
            require_finite(
                {"loss": float(values[0])},
                folder=folder,
                epoch=number,
                step=index,
                batch={"images": images, "tokens": tokens},
            )
            fabric.backward(measured[0])
            optimizer.step()
            optimizer.zero_grad()
            module.clip.logit_scale.data.clamp_(0, MAX_LOGIT_SCALE)
            means += (values - means) / index
            progress.advance(len(batch.captions), note=f"loss {means[0]:.3f} accuracy {means[1]:.3f}")
    row = {"epoch": number, "loss": float(means[0]), "accuracy": float(means[1])}
    row |= {
        "logit_scale": float(module.clip.logit_scale.detach().exp()),
        "lr": _learning_rate(config, number * config.steps),
    }
    return {**row, "seconds": time.monotonic() - started}


def _tensors(batch: CaptionedBatch, context_length: int) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(np.ascontiguousarray(batch.pixels.transpose(0, 3, 1, 2)))
    return images, tokenize(batch.captions, context_length)


def _learning_rate(config: ClipTraining, step: int) -> float:
    """Linear warm-up, then a cosine down to 0."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    total = config.rounds * config.steps
    return config.lr * 0.5 * (1 + float(np.cos(np.pi * (step - config.warmup_steps) / (total - config.warmup_steps))))


def _parameter_groups(clip: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only, not for gains, biases and the logit scale."""
    decaying = [p for p in clip.parameters() if p.ndim >= 2]
    others = [p for p in clip.parameters() if p.ndim < 2]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
