"""Stage 2: train the image encoder with five losses against the frozen prompts (Sec. 5 of the method)."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor

from reid.data.person_images import Batch, load_batches
from reid.data.samplers import IdentityBatches
from reid.inference.devices import mean_over_processes, share_of
from reid.inference.embed import bank_features, identity_means, retrieval_features
from reid.inference.trained import LATEST
from reid.model.muva import Muva
from reid.training.curves import Curves, Watch, require_finite
from reid.training.job import Job, describe_training
from reid.training.optimizer import WeightAverage, image_optimizer, set_learning_rate, stage2_lr
from reid.training.snapshots import VALIDATED, Snapshots
from reid.training.stage1 import load_prompts
from reid.training.steps import ImageStep
from shared.progress import Progress

log = logging.getLogger(__name__)


def train_images(model: Muva, job: Job, prompts: Path) -> Path:
    """Train the image encoder, or resume, and return stage2/latest.pt, which is also the finished model.

    latest.pt holds model, optimiser, precision scaler, averaged weights, random state and the history of all epochs;
    see reid.training.snapshots for the other files.

    Raises DgreidError when a loss is not finite (the batch is kept in stage2/not_finite.pt), or when the prompts
    or an interrupted stage belong to other data.
    """
    config, fabric, folder = job.config.stage2, job.fabric, job.folder / "stage2"
    prompts_sha256 = load_prompts(model, prompts, job.data.identities_sha256)
    log.info("stage 2 uses the prompts %s, sha256 %s", prompts, prompts_sha256[:16])
    marks = {"training_set_sha256": job.data.sha256, "prompts_sha256": prompts_sha256}
    scaled = isinstance(getattr(fabric.strategy.precision, "scaler", None), torch.amp.GradScaler)
    fused = fabric.device.type == "cuda" and not (scaled and config.gradient_clip is not None)
    optimizer = image_optimizer(model, config, fused=fused)
    describe_training(model, "stage 2")
    text = text_prototypes(model, job.config.data.embed_batch)
    step = ImageStep(model, text, config, leave_out_absent_parts=job.config.data.leave_out_absent_parts)
    module, fabric_optimizer = fabric.setup(step, optimizer)
    if config.fill_neck and not (folder / LATEST).is_file():
        fill_neck(model, _source_features(model, job, after_neck=False))
    averaged = WeightAverage(model, config.ema_decay) if config.ema_decay else None
    snapshots = Snapshots(folder, marks, model, optimizer, fabric, averaged)
    history = snapshots.restore()
    curves = Curves(folder, history, written=fabric.is_global_zero, trackers=job.trackers)
    batches = job.batches(config)
    for epoch in range(len(history) + 1, config.epochs + 1):
        row = _epoch(step, module, fabric_optimizer, averaged, batches, job, epoch)
        curves.add({**row, **_validate(averaged.module if averaged else model, job)})
        if epoch == len(history) + 1 + job.config.compile and epoch < config.epochs:  # the first one compiles
            left = row["seconds"] * (config.epochs - epoch) / 60
            log.info("stage 2: %.1f s per epoch as measured, about %.1f min left", row["seconds"], left)
        snapshots.save(curves.history, job.config)
    curves.close()
    fabric.barrier()
    return folder / LATEST


@torch.no_grad()
def fill_neck(model: Muva, features: Tensor) -> None:
    """Give the neck the mean and variance of features [N, F], NaN where a part is absent, as running statistics.

    Otherwise the first memory is made of features that are not centred, and the first batches are compared with it.
    """
    mean = features.nanmean(dim=0)
    variance = (features - mean).square().nanmean(dim=0)
    neck = model.bnneck
    assert neck.running_mean is not None and neck.running_var is not None
    neck.running_mean.copy_(mean.nan_to_num(0.0))
    neck.running_var.copy_(variance.nan_to_num(1.0))


@torch.no_grad()
def text_prototypes(model: Muva, batch_size: int) -> Tensor:
    """Text features [K, F] of all identities, on the model's device."""
    identities = torch.arange(model.num_identities, device=model.prompts.contexts.device)
    return torch.cat([model.encode_text(part) for part in torch.split(identities, batch_size)])


def _epoch(
    step: ImageStep,
    module: _FabricModule,
    optimizer: _FabricOptimizer,
    averaged: WeightAverage | None,
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
    step.draws.manual_seed(job.config.seed * 1_000_003 + epoch)
    plan, watch = batches.epoch(epoch), Watch(step.measures, fabric.device)
    images = sum(len(batch) for batch in plan)
    shares = [share_of(batch, fabric) for batch in plan]
    loaded = load_batches(job.augmented, shares, job.config.data.workers, fabric.device)
    every_label = fabric.to_device(job.labels)
    with Progress(f"stage 2 epoch {epoch}/{config.epochs}", images, shown=fabric.is_global_zero) as progress:
        for number, batch in enumerate(loaded, start=1):
            group = min(config.accumulate, len(plan) - (number - 1) // config.accumulate * config.accumulate)
            steps = number % config.accumulate == 0 or number == len(plan)
            with fabric.no_backward_sync(module, enabled=not steps):
                total, measured = module(batch.images, every_label[batch.indices], batch.visible)
                watch.add(mean_over_processes(measured), batch)
                for step_number, values, looked_at in watch.looked_at(last=number == len(plan)):
                    _require_finite(values, job, epoch, step_number, plan[step_number - 1], looked_at)
                fabric.backward(total / group)
            if steps:
                if config.gradient_clip is not None:
                    fabric.clip_gradients(module, optimizer, max_norm=config.gradient_clip, error_if_nonfinite=False)
                optimizer.step()
                optimizer.zero_grad()
                if averaged:
                    averaged.update(model)
            progress.advance(len(plan[number - 1]), note=_note(watch.means))
    size = torch.stack([parameter.detach().norm() for parameter in model.parameters()]).norm().item()
    _require_finite({"norm of the weights": size}, job, epoch, len(plan), plan[-1], batch)  # before they are saved
    seconds = time.monotonic() - started
    row = {"epoch": epoch, **watch.means}
    return {**row, "lr": stage2_lr(config, epoch), "seconds": seconds, "images_per_s": images / seconds}


def _require_finite(
    values: Mapping[str, float], job: Job, epoch: int, step: int, indices: Sequence[int], batch: Batch
) -> None:
    """indices: of the whole batch, of which `batch` is this process's share."""
    require_finite(
        values,
        folder=job.folder / "stage2",
        epoch=epoch,
        step=step,
        batch={"images": batch.images, "labels": job.labels[batch.indices.cpu()], "visible": batch.visible},
        images=[f"{job.data.datasets[index]}/{job.data.paths[index]}" for index in indices],
        rank=job.fabric.global_rank,
    )


def _validate(model: Muva, job: Job) -> dict[str, float]:
    """The score on held-out source identities after an epoch, if there are any. model: with the weights to score."""
    if job.held_out is None or job.held_out_images is None:
        return {}
    features = retrieval_features(
        model,
        job.held_out_images,
        job.fabric,
        batch_size=job.config.data.embed_batch,
        workers=job.config.data.workers,
    )
    return {VALIDATED: job.held_out.mean_ap(features)}


def _memory_rows(model: Muva, job: Job) -> Tensor:
    """The memory [K, F] at an epoch's start: mean of the normalised features of every identity, normalised."""
    features = _source_features(model, job, after_neck=True)
    lengths = features.nan_to_num().norm(dim=1, keepdim=True).clamp_min(1e-12)
    return identity_means(features / lengths, job.labels, len(job.data.identities))


def _source_features(model: Muva, job: Job, *, after_neck: bool) -> Tensor:
    """Features [N, F] of all training images as they are, through pseudo-label masks."""
    return bank_features(
        model,
        job.bank,
        job.fabric,
        after_neck=after_neck,
        batch_size=job.config.data.embed_batch,
        workers=job.config.data.workers,
        absent_as_nan=job.config.data.leave_out_absent_parts,
    )


def _note(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in values.items())
