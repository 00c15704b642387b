"""Stage 2: train the image encoder with five losses against the frozen prompts (Sec. 5 of the method)."""

import logging
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor, nn

from reid.checkpoint import load_checkpoint, save_checkpoint
from reid.config import Stage2Config
from reid.curves import Curves, require_finite
from reid.embed import bank_features, identity_means
from reid.identity_memory import IdentityMemory
from reid.images import load_batches
from reid.job import Job, describe_training, require_same
from reid.losses import identity_loss, mask_bce_loss, mask_dice_loss, text_loss
from reid.model.muva import Muva
from reid.optim import image_optimizer, set_learning_rate, stage2_lr
from reid.samplers import IdentityBatches
from reid.stage1 import load_prompts
from reid.transforms import normalised
from shared.progress import Progress

log = logging.getLogger(__name__)


class ImageStep(nn.Module):
    """The losses of one batch; what Fabric wraps.

    Args:
        model: with a trainable image side.
        text: [K, F] text prototypes, constant.
        config: weights and settings of the losses.
    """

    text: Tensor

    def __init__(self, model: Muva, text: Tensor, config: Stage2Config) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.memory = IdentityMemory(torch.zeros_like(text), config.memory_temperature, config.memory_momentum)
        self.register_buffer("text", text)

    def forward(self, images: Tensor, labels: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """images uint8 [B, 3, H, W], labels long [B], visible bool [B, R, L] -> the weighted sum of the losses, and
        the values named by `measures`, without gradient. The attention runs on predicted masks only."""
        config = self.config
        features, mask_logits = self.model.encode_images(normalised(images))
        necked = self.model.neck(features)
        logits = self.model.classify(necked)
        losses = {
            "identity": identity_loss(logits, labels, config.label_smoothing),
            "memory": self.memory(F.normalize(necked, dim=1), labels),
            "text": text_loss(features, self.text, labels, config.label_smoothing),
        }
        watched = {"accuracy": (logits.argmax(dim=1) == labels).float().mean()}
        if mask_logits is not None:
            encoder = self.model.image_encoder
            losses["mask_bce"] = mask_bce_loss(mask_logits, visible)
            losses["mask_dice"] = mask_dice_loss(mask_logits, visible, encoder.mask_temperature)
            shown = torch.sigmoid(mask_logits[-1] / encoder.mask_temperature) > encoder.gate_threshold
            watched["mask_iou"] = (shown & visible).sum() / (shown | visible).sum().clamp_min(1)
        weights = config.losses.model_dump()
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        values = {"loss": total, **losses, **watched}
        return total, torch.stack([values[name].detach().float() for name in self.measures])

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the values `forward` gives; without parts there is nothing to measure of masks."""
        masks = ("mask_bce", "mask_dice", "mask_iou") if self.model.num_parts else ()
        return ("loss", "identity", "memory", "text", *masks, "accuracy")


def train_images(model: Muva, job: Job, prompts: Path) -> Path:
    """Train the image encoder, or continue, and return stage2/latest.pt, which is also the finished model.

    latest.pt holds model, optimiser, precision scaler, random state and the history of all epochs.

    Raises DgreidError when a loss is not finite (the batch is listed in stage2/not_finite.json), or when the prompts
    or an interrupted stage belong to other data.
    """
    config, fabric, folder = job.config.stage2, job.fabric, job.folder / "stage2"
    latest = folder / "latest.pt"
    prompts_sha256 = load_prompts(model, prompts, job.data.identities_sha256)
    log.info("stage 2 uses the prompts %s, sha256 %s", prompts, prompts_sha256[:16])
    marks = {"training_set_sha256": job.data.sha256, "prompts_sha256": prompts_sha256}
    optimizer = image_optimizer(model, config)
    describe_training(model, "stage 2")
    step = ImageStep(model, text_prototypes(model, job.config.data.embed_batch), config)
    module, fabric_optimizer = fabric.setup(step, optimizer)
    history: list[dict[str, float]] = []
    if latest.is_file():
        state, meta = load_checkpoint(latest)
        require_same(meta, marks, latest)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        fabric.strategy.precision.load_state_dict(state["precision"])
        torch.set_rng_state(state["random"])
        history = meta["history"]
    curves, batches = Curves(folder, history), job.batches(config)
    for epoch in range(len(history) + 1, config.epochs + 1):
        row = _epoch(step, module, fabric_optimizer, batches, job, epoch)
        curves.add(row)
        if epoch == len(history) + 1:
            _tell_cost(row["seconds"], config.epochs - epoch)
        if epoch % config.checkpoint_every == 0 or epoch == config.epochs:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "precision": fabric.strategy.precision.state_dict(),
                "random": torch.get_rng_state(),
            }
            meta = {"epoch": epoch, "num_identities": model.num_identities, **marks, "history": curves.history}
            save_checkpoint(latest, state, meta)
    curves.close()
    return latest


@torch.no_grad()
def text_prototypes(model: Muva, batch_size: int) -> Tensor:
    """Text features [K, F] of all identities, on the model's device."""
    identities = torch.arange(model.num_identities, device=model.prompts.contexts.device)
    return torch.cat([model.encode_text(part) for part in torch.split(identities, batch_size)])


def _epoch(
    step: ImageStep,
    module: _FabricModule,
    optimizer: _FabricOptimizer,
    batches: IdentityBatches,
    job: Job,
    epoch: int,
) -> dict[str, Any]:
    """Fill the memory, then one pass over the epoch's batches; the row of metrics.csv."""
    config, fabric, model = job.config.stage2, job.fabric, step.model
    started = time.monotonic()
    set_learning_rate(optimizer.optimizer, stage2_lr(config, epoch))
    step.memory.rows.copy_(_memory_rows(model, job))
    model.train()
    job.augmented.epoch = epoch
    plan, means = batches.epoch(epoch), torch.zeros(len(step.measures))
    images = sum(len(batch) for batch in plan)
    with Progress(f"stage 2 epoch {epoch}/{config.epochs}", images) as progress:
        for number, batch in enumerate(load_batches(job.augmented, plan, job.config.data.workers), start=1):
            labels = job.labels[batch.indices]
            total, measured = module(*fabric.to_device((batch.images, labels, batch.visible)))
            values = measured.cpu()
            named = dict(zip(step.measures, values.tolist(), strict=True))
            names = [f"{job.data.datasets[index]}/{job.data.paths[index]}" for index in batch.indices.tolist()]
            require_finite(named, folder=job.folder / "stage2", epoch=epoch, step=number, images=names)
            fabric.backward(total)
            if config.gradient_clip is not None:
                fabric.clip_gradients(module, optimizer, max_norm=config.gradient_clip, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad()
            means += (values - means) / number
            progress.advance(len(labels), note=_note(dict(zip(step.measures, means.tolist(), strict=True))))
    seconds = time.monotonic() - started
    row = {"epoch": epoch, **dict(zip(step.measures, means.tolist(), strict=True))}
    return {**row, "lr": stage2_lr(config, epoch), "seconds": seconds, "images_per_s": images / seconds}


def _memory_rows(model: Muva, job: Job) -> Tensor:
    """The memory [K, F] at an epoch's start: mean of the normalised features of every identity, normalised."""
    features = bank_features(
        model,
        job.bank,
        job.fabric,
        after_neck=True,
        batch_size=job.config.data.embed_batch,
        workers=job.config.data.workers,
    )
    return identity_means(F.normalize(features, dim=1), job.labels, len(job.data.identities))


def _note(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in values.items())


def _tell_cost(seconds: float, epochs_left: int) -> None:
    log.info("stage 2: %.1f s per epoch as measured, about %.1f min left", seconds, seconds * epochs_left / 60)
