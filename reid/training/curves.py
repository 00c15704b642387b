"""What is measured per epoch: a CSV that is always whole, TensorBoard curves, and the stop at a non-finite loss."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor

from reid.training.trackers import Tracker
from shared.errors import DgreidError
from shared.files import atomic_path, write_text

LOOK_EVERY = 16  # steps on an accelerator between two looks at their losses


class Curves:
    """One row of numbers per epoch, in `folder`/metrics.csv and as TensorBoard events beside it.

    Args:
        folder: of the stage, inside the run folder.
        history: the rows of the epochs before an interruption; later ones of the interrupted process are dropped.
        written: False in all but one of several processes that train together: nothing is written.
        trackers: who is told every row, too.
    """

    def __init__(
        self,
        folder: Path,
        history: Sequence[Mapping[str, float]] = (),
        *,
        written: bool = True,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.history = [dict(row) for row in history]
        self._folder, self._written, self._trackers = folder, written, trackers
        self._board = TensorBoardLogger(
            folder, name="", version="", purge_step=len(self.history) + 1 if self.history else None
        )

    def add(self, row: Mapping[str, float]) -> None:
        """Record one epoch; every row needs the same keys, `epoch` (1-based) among them."""
        self.history.append(dict(row))
        if not self._written:
            return
        self._board.log_metrics({key: value for key, value in row.items() if key != "epoch"}, step=int(row["epoch"]))
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
        table.writeheader()
        table.writerows(self.history)
        write_text(self._folder / "metrics.csv", text.getvalue())
        for tracker in self._trackers:
            tracker.curves(self._folder.name, row)

    def close(self) -> None:
        self._board.finalize("success")


class Watch:
    """What the steps of an epoch measured, kept on the device: their means, and every few steps a look at them all.

    A look waits for the device, so on an accelerator it is taken every LOOK_EVERY steps and after the last one; until
    then whatever a step was computed from is kept.

    Args:
        names: of the values of a step.
        device: that the values are on.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names, self._every = tuple(names), 1 if device.type == "cpu" else LOOK_EVERY
        self._mean, self._steps = torch.zeros(len(self._names), device=device), 0
        self._waiting: list[tuple[Tensor, Any]] = []
        self.means: dict[str, float] = {}  # over all steps, as of the last look

    def add(self, values: Tensor, kept: Any) -> None:
        """The values [names] of the next step, and what they were computed from."""
        self._steps += 1
        self._mean += (values - self._mean) / self._steps
        self._waiting.append((values, kept))

    def looked_at(self, *, last: bool) -> list[tuple[int, dict[str, float], Any]]:
        """If it is time for a look: number (from 1), values and what was kept of every step since the last one."""
        if len(self._waiting) < self._every and not last:
            return []
        *rows, mean = torch.stack([*(values for values, _ in self._waiting), self._mean]).tolist()
        self.means = dict(zip(self._names, mean, strict=True))
        first = self._steps - len(rows) + 1
        found = [
            (first + place, dict(zip(self._names, row, strict=True)), kept)
            for place, (row, (_, kept)) in enumerate(zip(rows, self._waiting, strict=True))
        ]
        self._waiting = []
        return found


def require_finite(
    values: Mapping[str, float],
    *,
    folder: Path,
    epoch: int,
    step: int,
    batch: Mapping[str, Tensor] | None = None,
    images: Sequence[str] = (),
    rank: int = 0,
) -> None:
    """Stop training when a loss is NaN or infinite, and keep the batch that it was computed from.

    Args:
        values: losses by name.
        folder: gets not_finite.json with epoch, step, losses and images, and the batch as not_finite.pt.
        batch: tensors as the model got them, to be read with `torch.load`.
        images: names of the images of the batch, those of all processes.
        rank: of this process; others than 0 write files of their own.
    Raises:
        DgreidError: a value is non-finite; names it and the files.
    """
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if not wrong:
        return
    path = folder / (f"not_finite_rank{rank}.json" if rank else "not_finite.json")
    tensors = path.with_suffix(".pt")
    if batch is not None:
        with atomic_path(tensors) as temporary:
            torch.save({name: tensor.detach().cpu() for name, tensor in batch.items()}, temporary)
    record = {"epoch": epoch, "step": step, "losses": {k: repr(v) for k, v in values.items()}, "images": list(images)}
    write_text(path, json.dumps(record, indent=2) + "\n")
    raise DgreidError(
        f"training stopped: non-finite {', '.join(wrong)} in epoch {epoch}, step {step}; "
        f"the file names the images of that batch{f', {tensors.name} beside it holds its tensors' if batch else ''}",
        path=path,
        fix="lower stage2.lr, set stage2.gradient_clip=1, or use precision=32-true, in a new run",
    )
