"""What is measured per epoch: a CSV that is always whole, TensorBoard curves, and the stop when a loss is no number."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from shared.atomic_files import write_text
from shared.errors import DgreidError


class Curves:
    """One row of numbers per epoch, in `folder`/metrics.csv and as TensorBoard events beside it.

    Args:
        folder: of the stage, inside the run folder.
        history: the rows of the epochs before an interruption; later ones of the interrupted process are dropped.
        written: False only remembers, in all but one of several processes that train together.
    """

    def __init__(self, folder: Path, history: Sequence[Mapping[str, float]] = (), *, written: bool = True) -> None:
        self.history = [dict(row) for row in history]
        self._folder, self._written = folder, written
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

    def close(self) -> None:
        self._board.finalize("success")


def require_finite(
    losses: Mapping[str, float], *, folder: Path, epoch: int, step: int, images: Sequence[str] = ()
) -> None:
    """Stop training when a loss is NaN or infinite; the batch goes to `folder`/not_finite.json.

    Raises DgreidError naming the losses concerned and that file.
    """
    wrong = [name for name, value in losses.items() if not math.isfinite(value)]
    if not wrong:
        return
    path = folder / "not_finite.json"
    record = {"epoch": epoch, "step": step, "losses": {k: repr(v) for k, v in losses.items()}, "images": list(images)}
    write_text(path, json.dumps(record, indent=2) + "\n")
    raise DgreidError(
        f"training stopped: {', '.join(wrong)} is not a finite number in epoch {epoch}, step {step}; "
        "the images of that batch are listed in the file",
        path=path,
        fix="lower stage2.lr, set stage2.gradient_clip=1, or use precision=32-true, in a new run",
    )
