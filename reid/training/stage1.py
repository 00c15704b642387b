"""Stage 1: learn the prompts of every identity against the frozen image encoder's prototypes (Sec. 4 of the method)."""

import hashlib
import signal
import threading
import time
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from reid.data.training_set import TrainingSet
from reid.inference.devices import mean_over_processes, share_of
from reid.inference.embed import bank_features, identity_means
from reid.model.checkpoint import load_tensors, save_tensors
from reid.model.muva import Muva
from reid.training.curves import Curves, Watch, require_finite
from reid.training.job import Job, describe_training
from reid.training.optimizer import prompt_optimizer, set_learning_rate, stage1_lr
from reid.training.prompt_state import PromptState, SparingWrites, remove_prompt_state
from reid.training.snapshots import require_same
from reid.training.steps import PromptStep
from shared.progress import Progress

PROMPTS = "prompts.safetensors"


class Ending:
    """Whether this process was told to end (SIGTERM), for work that ends at the next good moment.

    A context manager; the second SIGTERM has its usual effect. wanted: False leaves the signal as it is.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted and threading.current_thread() is threading.main_thread()
        self._told = False

    def __enter__(self) -> Self:
        if self._wanted:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._wanted:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: object) -> None:
        self._told = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def is_near(self, device: torch.device) -> bool:
        """Whether any of the processes was told; all must ask."""
        told = torch.tensor(float(self._told), device=device)
        return self._wanted and mean_over_processes(told).item() > 0


def learn_prompts(model: Muva, job: Job) -> Path:
    """Train the prompts, or resume, and write them to stage1/prompts.safetensors; the model holds them afterwards.

    Image features are computed once, with pseudo-label masks, before the BatchNorm; no image is opened after that.
    The file carries the SHA-256 of the vectors and of the identities they were made for.

    Raises DgreidError when a loss is not finite, or an interrupted stage belongs to other data; KeyboardInterrupt after
    SIGTERM, once an epoch whose state would not have been written is done and written.
    """
    folder = job.folder / "stage1"
    path = folder / PROMPTS
    learned = path.is_file()
    job.fabric.barrier()  # all have looked before the first one writes it
    if not learned:
        _train(model, job, folder)
        if job.fabric.is_global_zero:
            save_prompts(model, path, job.data)
    job.fabric.barrier()
    if job.fabric.is_global_zero:
        remove_prompt_state(folder)
    return path


def save_prompts(model: Muva, path: Path, data: TrainingSet) -> None:
    """Write the model's prompts, with their SHA-256 and that of the identities they are made for."""
    contexts = model.prompts.contexts.detach().cpu()
    marks = {"sha256": tensor_sha256(contexts), "identities_sha256": data.identities_sha256}
    save_tensors(path, {"contexts": contexts}, marks)


def load_prompts(model: Muva, path: Path, identities_sha256: str) -> str:
    """Put the prompts of a file into the model and return their SHA-256.

    Raises DgreidError when the file is damaged or was made for other identities.
    """
    tensors, marks = load_tensors(path)
    found = {"identities_sha256": marks.get("identities_sha256"), "sha256": tensor_sha256(tensors["contexts"])}
    require_same(found, {"identities_sha256": identities_sha256, "sha256": marks.get("sha256", "")}, path)
    with torch.no_grad():
        model.prompts.contexts.copy_(tensors["contexts"])
    return marks["sha256"]


def tensor_sha256(tensor: Tensor) -> str:
    """Hexadecimal SHA-256 of a CPU tensor's values."""
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()


def _train(model: Muva, job: Job, folder: Path) -> None:
    config, fabric, data = job.config.stage1, job.fabric, job.data
    first = fabric.is_global_zero
    with Progress("stage 1 image features", len(data), shown=first) as progress:
        features = bank_features(
            model,
            job.bank,
            fabric,
            after_neck=False,
            batch_size=job.config.data.embed_batch,
            workers=job.config.data.workers,
            absent_as_nan=job.config.data.leave_out_absent_parts,
            progress=progress,
        )
    optimizer = prompt_optimizer(model, config, fused=fabric.device.type == "cuda")
    describe_training(model, "stage 1")
    step = PromptStep(model, identity_means(features, job.labels, len(data.identities)))
    module, fabric_optimizer = fabric.setup(step, optimizer)
    state = PromptState(folder, model.prompts.contexts, optimizer, fabric, {"training_set_sha256": data.sha256})
    history = state.restore()
    curves, batches = Curves(folder, history, written=first, trackers=job.trackers), job.batches(config)
    writes = SparingWrites(state.size_bytes)
    shown = Progress("stage 1 prompts", config.epochs - len(history), unit="epochs", shown=first)
    with shown as progress, Ending(writes.leaves_out) as ending:
        for epoch in range(len(history) + 1, config.epochs + 1):
            started, losses, watch = time.monotonic(), [], Watch(("loss",), fabric.device)
            set_learning_rate(optimizer, stage1_lr(config, epoch))
            plan = batches.epoch(epoch)
            for number, batch in enumerate(plan, start=1):
                labels = job.labels[share_of(batch, fabric)]
                loss = module(*fabric.to_device(torch.unique(labels, return_inverse=True)))
                watch.add(mean_over_processes(loss)[None], labels)
                for step_number, values, looked_at in watch.looked_at(last=number == len(plan)):
                    losses.append(values["loss"])
                    require_finite(
                        values,
                        folder=folder,
                        epoch=epoch,
                        step=step_number,
                        batch={"labels": looked_at},
                        rank=fabric.global_rank,
                    )
                fabric.backward(loss)
                fabric_optimizer.step()
                fabric_optimizer.zero_grad()
            row = {"epoch": epoch, "loss": sum(losses) / len(losses), "lr": stage1_lr(config, epoch)}
            curves.add({**row, "seconds": time.monotonic() - started})
            ends = ending.is_near(fabric.device)
            if first and writes.is_due(ends or epoch == config.epochs):
                with writes:
                    state.save(curves.history)
            progress.advance(note=f"loss {row['loss']:.3f}")
            if ends:
                raise KeyboardInterrupt
    curves.close()
