"""The state of stage 2 on disk: latest.pt to resume from, best.pt to score, epoch_<n>.pt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from reid.config import RunConfig
from reid.inference.trained import BEST, LATEST, final_weights
from reid.model.checkpoint import load_checkpoint, save_checkpoint
from reid.model.muva import Muva
from reid.training.optimizer import WeightAverage
from shared.errors import DgreidError

VALIDATED = "validation_map"  # column of metrics.csv: mAP in percent of held-out source identities


class Snapshots:
    """Writes and reads the state of one run's stage 2; only the first process writes.

    Args:
        folder: of the stage.
        marks: what the run was made with; a state with other marks is refused.
        averaged: the moving average of the weights, if there is one.
    """

    def __init__(
        self,
        folder: Path,
        marks: Mapping[str, str],
        model: Muva,
        optimizer: torch.optim.Optimizer,
        fabric: Fabric,
        averaged: WeightAverage | None,
    ) -> None:
        self.folder, self.marks = folder, dict(marks)
        self._model, self._optimizer, self._fabric, self._averaged = model, optimizer, fabric, averaged

    def restore(self) -> list[dict[str, float]]:
        """Resume from latest.pt if there is one; returns the rows of its epochs.

        Raises DgreidError when it belongs to another training or is damaged.
        """
        if not (self.folder / LATEST).is_file():
            return []
        state, meta = load_checkpoint(self.folder / LATEST)
        require_same(meta, self.marks, self.folder / LATEST)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._fabric.strategy.precision.load_state_dict(state["precision"])
        if self._averaged:
            self._averaged.module.load_state_dict(final_weights(state))
        torch.set_rng_state(state["random"])
        history: list[dict[str, float]] = meta["history"]
        return history

    def save(self, history: Sequence[Mapping[str, float]], config: RunConfig) -> None:
        """Write what is due after the last epoch of `history`."""
        if not self._fabric.is_global_zero:
            return
        stage, epoch = config.stage2, int(history[-1]["epoch"])
        if VALIDATED in history[-1] and is_best(history):
            self._write(BEST, {"model": final_weights(self._state())}, history)
        if stage.keep_every and epoch % stage.keep_every == 0:
            self._write(f"epoch_{epoch:03d}.pt", self._state(), history)
        if epoch % stage.checkpoint_every == 0 or epoch == stage.epochs:
            self._write(LATEST, self._state(), history)

    def _state(self) -> dict[str, Any]:
        averaged = {"averaged": self._averaged.module.state_dict()} if self._averaged else {}
        return {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),
            "random": torch.get_rng_state(),
            **averaged,
        }

    def _write(self, name: str, state: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> None:
        about = {"epoch": history[-1]["epoch"], "num_identities": self._model.num_identities}
        meta = {**about, **self.marks, "history": [dict(row) for row in history]}
        save_checkpoint(self.folder / name, state, meta)


def is_best(history: Sequence[Mapping[str, float]]) -> bool:
    """Whether the last epoch is above all earlier ones on the held-out identities."""
    return all(history[-1][VALIDATED] > row[VALIDATED] for row in history[:-1])


def require_same(found: dict[str, Any], expected: dict[str, str], path: Path) -> None:
    """Refuse a file that was made for other data. Raises DgreidError naming what differs."""
    differing = [key for key, value in expected.items() if found.get(key) != value]
    if differing:
        raise DgreidError(
            f"the file belongs to another training: {', '.join(differing)} differ",
            path=path,
            fix="restore the manifests and labels this run was started with, or start a new run with --run <name>",
        )
