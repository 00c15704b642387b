"""Training of the pocket grounder: seeing first, then answering; can be killed at any time and goes on where it was."""

import json
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image

from labeler.engines.local_transformers_model import LocalModel
from labeler.grounding.coordinates import prepare
from pipelines.recipes.grounder.architecture import FAMILY, PATCH, build, save
from pipelines.recipes.grounder.examples import Batch, Examples
from pipelines.recipes.grounder.objective import Objective
from pipelines.recipes.grounder.scenes import RealScenes, Scenes
from pipelines.recipes.grounder.scoring import compare, score
from pipelines.recipes.grounder.tokenizer import number_ids
from pipelines.recipes.grounder.vision_tower import DenseHeads, centres, consensus, look, patches
from shared.files import atomic_path, make_folder
from shared.geometry import Box
from shared.progress import Progress
from shared.schemas import PARTS, LabelStatus

STATE = "training.pt"
LOG = "log.jsonl"
CHECKPOINT = "checkpoint"
NOTED = 40  # steps whose losses the progress line averages
AHEAD = 3  # batches made before they are needed
LONGEST_STEP_S = 30.0  # what a step may count for: a machine that slept did not train


@dataclass(frozen=True)
class Recipe:
    """All that decides what is learned. Shares are of the budget, which is minutes or, if given, steps."""

    minutes: float = 150.0
    steps: int | None = None  # a budget that gives the same weights again, on the same machine
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    muon_learning_rate: float = 0.012  # 0.03 learns to answer worse, not faster
    muon_weight_decay: float = 0.03
    warmup_steps: int = 50
    seeing_share: float = 0.5  # the vision tower alone, with the dense heads: answers learn fast from good eyes
    decay_from: float = 0.4  # then the learning rate falls to a fiftieth
    real_share: float = 0.6  # of the views, photos
    last_real_share: float = 0.6  # after decay_from
    ema_decay: float = 0.995
    score_minutes: float = 6.0
    save_minutes: float = 2.0
    seed: int = 6


class Trainer:
    """One training in `folder`: state, log and, at its end, the checkpoint."""

    def __init__(
        self, folder: Path, recipe: Recipe, real: RealScenes, generated: Scenes, *, device: torch.device
    ) -> None:
        self._folder, self._recipe, self._real = make_folder(folder), recipe, real
        torch.manual_seed(recipe.seed)
        model, self._processor = build()
        model.model.language_model.set_attn_implementation("eager")  # the fused one is slow backwards on a CPU
        self._model, self._heads = model.to(device), DenseHeads().to(device)
        self._examples = Examples(real.training, generated, self._processor, batch=recipe.batch, seed=recipe.seed)
        numbers = number_ids(self._processor.tokenizer)
        self._parameters = [*model.parameters(), *self._heads.place.parameters()]
        self._objective = Objective(model, self._heads, numbers)
        self._optimizers = _optimizers(model, self._heads, recipe)
        self._step, self._trained_s = 0, 0.0
        if (folder / STATE).exists():
            self._load()
        else:
            self._fit_patches()
            self._average = [value.detach().clone() for value in model.parameters()]

    def run(self) -> None:
        """Train until the budget is spent, from wherever it was, and write the checkpoint: the averaged weights.

        The last ones, since so few validation photos cannot tell late weights apart.
        """
        saved = scored = self._trained_s
        losses: list[dict[str, float]] = []
        with Progress("train grounder", self._recipe.steps, "steps") as progress, ThreadPoolExecutor(1) as pool:
            batches = self._batches(pool)
            while self.share < 1:
                started = time.monotonic()
                losses.append(self._train(next(batches)))
                self._trained_s += min(time.monotonic() - started, LONGEST_STEP_S)
                progress.advance(note=self._note(losses))
                if self.share >= 1 or self._trained_s - scored > 60 * self._recipe.score_minutes:
                    self._score(losses)
                    scored, losses = self._trained_s, []
                if self.share >= 1 or self._trained_s - saved > 60 * self._recipe.save_minutes:
                    self._save()
                    saved = self._trained_s
        with self._averaged():
            save(self._model, self._processor, self.checkpoint)

    @property
    def share(self) -> float:
        """The share of the budget that is spent."""
        recipe = self._recipe
        spent, budget = (self._step, recipe.steps) if recipe.steps else (self._trained_s, 60 * recipe.minutes)
        return spent / budget if budget else 1.0

    @property
    def record(self) -> dict[str, Any]:
        """How the weights came to be."""
        told = {"steps": self._step, "minutes": round(self._trained_s / 60, 1), "photos": len(self._real.training)}
        return {**asdict(self._recipe), **told}

    @property
    def checkpoint(self) -> Path:
        return self._folder / CHECKPOINT

    def _note(self, losses: list[dict[str, float]]) -> str:
        """Where the training is, and its losses of late."""
        recent = losses[-NOTED:]
        means = {name: fmean(one[name] for one in recent if name in one) for name in losses[-1]}
        said = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        return f"step {self._step}, {self.share:.1%} of the budget, {said}"

    def _batches(self, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        """Batches from the next step on, a few of them made ahead in another thread."""
        ahead: deque[Future[Batch]] = deque()
        for step in count(self._step):
            recipe = self._recipe
            real_share = recipe.last_real_share if self.share > recipe.decay_from else recipe.real_share
            ahead.append(pool.submit(self._examples.batch, step, real_share=real_share))
            if len(ahead) > AHEAD:
                yield ahead.popleft().result()

    def _train(self, batch: Batch) -> dict[str, float]:
        """One step; the losses before it."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * self._pace()
            optimizer.zero_grad()
        losses = self._objective(batch, with_text=self.share >= self._recipe.seeing_share)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        self._step += 1
        follow = 1 - min(self._recipe.ema_decay, (1 + self._step) / (10 + self._step))
        with torch.no_grad():
            torch._foreach_lerp_(self._average, list(self._model.parameters()), follow)
        return {name: float(value.detach()) for name, value in losses.items()}

    def _pace(self) -> float:
        """The learning rate's share of its peak: warm-up, constant, then half a cosine down to a fiftieth."""
        left = min(1.0, (1 - self.share) / (1 - self._recipe.decay_from))
        decay = 0.02 + 0.98 * 0.5 * (1 - math.cos(math.pi * left))
        return min(1.0, (self._step + 1) / self._recipe.warmup_steps) * decay

    def _score(self, losses: list[dict[str, float]]) -> None:
        """Log mean losses and the averaged weights' scores."""
        line: dict[str, Any] = {"step": self._step, "minutes": round(self._trained_s / 60, 1)}
        line |= {name: round(fmean(one[name] for one in losses if name in one), 4) for name in losses[-1]}
        with self._averaged():
            seen = self._seen_boxes(self._real.validation)
            line["seen"] = compare(seen, self._real.validation.boxes).as_json()
            if self.share > self._recipe.seeing_share:
                local = LocalModel("pocket", FAMILY, self._model, self._processor, logprobs=False)
                validation = score(local, self._real.validation)
                line |= {"validation": validation.as_json(), "held_out": score(local, self._real.held_out).as_json()}
        with (self._folder / LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")

    @torch.inference_mode()
    def _seen_boxes(self, scenes: Scenes) -> list[dict[str, tuple[LabelStatus, Box | None]]]:
        """Boxes that the vision tower's tokens agree on: how far it is before it can answer in words."""
        found: list[dict[str, tuple[LabelStatus, Box | None]]] = []
        for pixels in scenes.pixels:
            image, sent = prepare(Image.fromarray(pixels), FAMILY)
            rows, columns = image.height // PATCH, image.width // PATCH
            seen = patches(torch.from_numpy(np.array(image))[None].to(self._model.device))
            middles = centres(rows, columns, seen.device)
            agreed = consensus(*self._heads(look(self._model.model.visual, seen, rows, columns), middles))[0] * PATCH
            boxes = [sent.to_image(Box(*box)) for box in agreed.tolist()]
            found.append({part: (LabelStatus.OK, box) for part, box in zip(PARTS, boxes, strict=True)})
        return found

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with its averaged weights, for as long as it is looked at."""
        parameters = list(self._model.parameters())
        trained = [value.detach().clone() for value in parameters]
        with torch.no_grad():
            torch._foreach_copy_(parameters, self._average)
        self._model.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, trained)
            self._model.train()

    @torch.no_grad()
    def _fit_patches(self) -> None:
        """Start the patch embedding as the whitened principal components of patches."""
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
            "average": self._average,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "progress": [self._step, self._trained_s],
        }
        with atomic_path(self._folder / STATE) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        state = torch.load(self._folder / STATE, weights_only=True, map_location=self._model.device)
        self._model.load_state_dict(state["model"])
        self._heads.load_state_dict(state["heads"])
        self._average = state["average"]
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._step, self._trained_s = state["progress"]


def _optimizers(model: Any, heads: DenseHeads, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices between the layers' tokens, AdamW for everything else.

    After 150 steps of seeing, Muon was some 30 steps ahead of AdamW alone, for 12 % more time a step.
    """
    layers = [*model.model.visual.blocks, *model.model.language_model.layers]
    matrices = [value for layer in layers for value in layer.parameters() if value.ndim == 2]
    taken = set(map(id, matrices))
    words = model.get_input_embeddings().weight
    others = [value for value in (*model.parameters(), *heads.place.parameters()) if id(value) not in taken]
    muon = [{"params": matrices, "peak": recipe.muon_learning_rate, "weight_decay": recipe.muon_weight_decay}]
    adam = [
        {
            "params": [value for value in others if value.ndim > 1 and value is not words],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [value for value in others if value.ndim <= 1 or value is words], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(muon),
        torch.optim.AdamW([{**group, "peak": recipe.learning_rate} for group in adam], betas=(0.9, 0.98), fused=True),
    ]
