"""Training of the pocket grounder: the vision tower first, then the whole model; resumable."""

import json
import math
import pickle
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from labeler.engines.local_transformers_model import LocalModel
from labeler.grounding.coordinates import prepare
from pipelines.recipes.grounder.architecture import FAMILY, PATCH, build, save
from pipelines.recipes.grounder.examples import Batch, Examples
from pipelines.recipes.grounder.objective import DenseHeads, Objective, consensus_boxes
from pipelines.recipes.grounder.scenes import RealScenes, Scenes
from pipelines.recipes.grounder.scoring import score, score_boxes
from pipelines.recipes.grounder.tokenizer import number_ids
from pipelines.recipes.grounder.vision_tower import encode_patches, patch_centres, patches
from shared.errors import DataError
from shared.files import atomic_path, make_folder
from shared.geometry import Box
from shared.progress import Progress
from shared.schemas import PARTS, LabelStatus

STATE = "training.pt"
LOG = "log.jsonl"
CHECKPOINT = "checkpoint"
PROGRESS_STEPS = 40  # steps whose mean losses the progress line shows
PREFETCH = 3  # batches
MAX_STEP_S = 30.0  # longest time that one step counts for, in case the machine was suspended

_Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class GrounderTraining:
    """Everything that determines the weights, except the data. The budget is in minutes or, if given, in steps."""

    minutes: float = 150.0
    steps: int | None = None  # a budget in steps gives reproducible weights on the same machine
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    muon_learning_rate: float = 0.012  # 0.03 was no faster and ended worse
    muon_weight_decay: float = 0.03
    warmup_steps: int = 50
    vision_share: float = 0.5  # of the budget: only the vision tower, with the dense losses
    decay_start: float = 0.4  # fraction of the budget after which the learning rate decays to 1/50
    real_share: float = 0.6  # of the views are of photos
    ema_decay: float = 0.995
    score_minutes: float = 6.0
    save_minutes: float = 2.0
    seed: int = 6


class Trainer:
    """One training in `folder`: its state, its log and finally the checkpoint.

    Raises DataError when the folder holds a state that this version cannot resume.
    """

    def __init__(
        self, folder: Path, config: GrounderTraining, real: RealScenes, generated: Scenes, *, device: torch.device
    ) -> None:
        self._folder, self._config, self._real = make_folder(folder), config, real
        torch.manual_seed(config.seed)
        model, self._processor = build()
        model.model.language_model.set_attn_implementation(
            "eager"
        )  # the backward pass of the fused one is slow on a CPU
        self._model, self._heads = model.to(device), DenseHeads().to(device)
        self._examples = Examples(real.training, generated, self._processor, batch=config.batch, seed=config.seed)
        self._parameters = [*model.parameters(), *self._heads.position.parameters()]
        self._optimizers = _optimizers(model, self._heads, config)
        self._step, self._trained_s = 0, 0.0
        if not (folder / STATE).exists():
            self._init_patch_embedding()
        self._averaged = averaged_model(model, config.ema_decay)
        self._objective = Objective(model, self._heads, number_ids(self._processor.tokenizer))
        if (folder / STATE).exists():
            self._load()

    def run(self) -> None:
        """Train, or resume, until the budget is used, and write the checkpoint: the averaged weights of the last step.

        There is no model selection: the validation photos are too few to rank late checkpoints.
        """
        saved = scored = self._trained_s
        losses: list[dict[str, float]] = []
        with Progress("train grounder", self._config.steps, "steps") as progress, ThreadPoolExecutor(1) as pool:
            batches = self._batches(pool)
            while self.budget_used < 1:
                started = time.monotonic()
                losses.append(self._train(next(batches)))
                self._trained_s += min(time.monotonic() - started, MAX_STEP_S)
                progress.advance(note=self._progress_note(losses))
                if self.budget_used >= 1 or self._trained_s - scored > 60 * self._config.score_minutes:
                    self._score(losses)
                    scored, losses = self._trained_s, []
                if self.budget_used >= 1 or self._trained_s - saved > 60 * self._config.save_minutes:
                    self._save()
                    saved = self._trained_s
        save(self._averaged.module, self._processor, self.checkpoint)

    @property
    def budget_used(self) -> float:
        """The fraction of the budget that has been used; 1 and more when training is finished."""
        config = self._config
        used, budget = (self._step, config.steps) if config.steps else (self._trained_s, 60 * config.minutes)
        return used / budget if budget else 1.0

    @property
    def record(self) -> dict[str, Any]:
        """The settings, and the steps, minutes and photos that were trained on."""
        spent = {"steps": self._step, "minutes": round(self._trained_s / 60, 1), "photos": len(self._real.training)}
        return {**asdict(self._config), **spent}

    @property
    def checkpoint(self) -> Path:
        return self._folder / CHECKPOINT

    def _progress_note(self, losses: list[dict[str, float]]) -> str:
        """Step, budget used and recent mean losses."""
        recent = losses[-PROGRESS_STEPS:]
        means = {name: fmean(one[name] for one in recent if name in one) for name in losses[-1]}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        return f"step {self._step}, {self.budget_used:.1%} of the budget, {shown}"

    def _batches(self, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        """Batches from the next step on, prefetched in another thread."""
        ahead: deque[Future[Batch]] = deque()
        for step in count(self._step):
            ahead.append(pool.submit(self._examples.batch, step, real_share=self._config.real_share))
            if len(ahead) > PREFETCH:
                yield ahead.popleft().result()

    def _train(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; returns the losses before it."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * self._lr_factor()
            optimizer.zero_grad()
        losses = self._objective(batch, with_text=self.budget_used >= self._config.vision_share)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        self._step += 1
        self._averaged.update_parameters(self._model)
        return {name: float(value.detach()) for name, value in losses.items()}

    def _lr_factor(self) -> float:
        """Learning rate relative to its peak: linear warm-up, constant, then a cosine down to 1/50."""
        left = min(1.0, (1 - self.budget_used) / (1 - self._config.decay_start))
        decay = 0.02 + 0.98 * 0.5 * (1 - math.cos(math.pi * left))
        return min(1.0, (self._step + 1) / self._config.warmup_steps) * decay

    def _score(self, losses: list[dict[str, float]]) -> None:
        """Log mean losses and the scores of the averaged weights."""
        line: dict[str, Any] = {"step": self._step, "minutes": round(self._trained_s / 60, 1)}
        line |= {name: round(fmean(one[name] for one in losses if name in one), 4) for name in losses[-1]}
        predicted = self._vision_boxes(self._real.validation)
        line["vision"] = score_boxes(predicted, self._real.validation.boxes).as_json()
        if self.budget_used > self._config.vision_share:
            local = LocalModel("pocket", FAMILY, self._averaged.module, self._processor, logprobs=False)
            validation = score(local, self._real.validation)
            line |= {"validation": validation.as_json(), "held_out": score(local, self._real.held_out).as_json()}
        with (self._folder / LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")

    @torch.inference_mode()
    def _vision_boxes(self, scenes: Scenes) -> list[dict[str, tuple[LabelStatus, Box | None]]]:
        """The consensus boxes of the image tokens: progress of the vision tower before the model can answer."""
        averaged: Any = self._averaged.module
        visual = averaged.model.visual
        found: list[dict[str, tuple[LabelStatus, Box | None]]] = []
        for pixels in scenes.pixels:
            image, sent = prepare(Image.fromarray(pixels), FAMILY)
            rows, columns = image.height // PATCH, image.width // PATCH
            inputs = patches(torch.from_numpy(np.array(image))[None].to(self._model.device))
            centres = patch_centres(rows, columns, inputs.device)
            boxes = consensus_boxes(*self._heads(encode_patches(visual, inputs, rows, columns), centres))[0] * PATCH
            original = [sent.to_image(Box(*box)) for box in boxes.tolist()]
            found.append({part: (LabelStatus.OK, box) for part, box in zip(PARTS, original, strict=True)})
        return found

    @torch.no_grad()
    def _init_patch_embedding(self) -> None:
        """Initialise the patch embedding with the whitened principal components of patches."""
        sample = [patches(self._examples.batch(step, real_share=0.5).pixels[::2]).flatten(0, 1) for step in range(12)]
        values, vectors = torch.linalg.eigh(torch.cov(torch.cat(sample).T))
        weight = self._model.model.visual.patch_embed.proj.weight  # [width, 3, 2, PATCH, PATCH]
        width = len(weight)
        strongest, kept = values[-width:], vectors[:, -width:]
        components = (kept / (strongest + strongest[-width // 3]).sqrt()).T.reshape(width, 3, PATCH, PATCH)
        weight.copy_(components[:, :, None].expand_as(weight) / 2)

    def _save(self) -> None:
        state = {
            "model": self._model.state_dict(),
            "heads": self._heads.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "progress": [self._step, self._trained_s],
        }
        with atomic_path(self._folder / STATE) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        try:
            state = torch.load(self._folder / STATE, weights_only=True, map_location=self._model.device)
            self._model.load_state_dict(state["model"])
            self._heads.load_state_dict(state["heads"])
            self._averaged.load_state_dict(state["averaged"])
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self._step, self._trained_s = state["progress"]
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as err:
            raise DataError(
                f"cannot resume the training ({' '.join(str(err).split())[:100]})",
                path=self._folder / STATE,
                fix="name another run with --run, or delete the run folder",
            ) from err


def averaged_model(model: Any, decay: float) -> AveragedModel:
    """Exponential moving average of a model's weights, in eval mode; starts as the model is now.

    The decay of update n (1, 2, ...) is min(decay, (1 + n) / (10 + n)), so that early averages follow the model.
    """

    def update(averages: _Tensors, values: _Tensors, updates: Tensor | int) -> None:
        done = int(updates)  # a tensor would round the factor to float32
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + done) / (10 + done)))

    averaged = AveragedModel(model, multi_avg_fn=torch.no_grad()(update))
    averaged.n_averaged += 1  # at 0 the first update would replace the average
    return averaged.eval()


def _optimizers(model: Any, heads: DenseHeads, config: GrounderTraining) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the weight matrices of the layers, AdamW for all other parameters.

    After 150 steps of the vision tower, Muon was about 30 steps ahead of AdamW alone, for 12 % more time per step.
    """
    layers = [*model.model.visual.blocks, *model.model.language_model.layers]
    matrices = [value for layer in layers for value in layer.parameters() if value.ndim == 2]
    taken = set(map(id, matrices))
    embedding = model.get_input_embeddings().weight
    others = [value for value in (*model.parameters(), *heads.position.parameters()) if id(value) not in taken]
    muon = [{"params": matrices, "peak_lr": config.muon_learning_rate, "weight_decay": config.muon_weight_decay}]
    adam = [
        {
            "params": [value for value in others if value.ndim > 1 and value is not embedding],
            "weight_decay": config.weight_decay,
        },
        {"params": [value for value in others if value.ndim <= 1 or value is embedding], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(muon),
        torch.optim.AdamW(
            [{**group, "peak_lr": config.learning_rate} for group in adam], betas=(0.9, 0.98), fused=True
        ),
    ]
