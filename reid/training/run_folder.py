"""What a training records of itself: configuration, versions, image ids, metrics per epoch, non-finite batches."""

import csv
import io
import json
import math
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor

from shared.errors import ConfigError, DgreidError
from shared.files import atomic_path, make_folder, write_text

PACKAGES = (
    "dgreid",
    "torch",
    "torchvision",
    "open_clip_torch",
    "lightning-fabric",
    "pyarrow",
    "duckdb",
    "vllm",
    "transformers",
)


def open_run(
    folder: Path, config: dict[str, Any], *, upgraded: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> Path:
    """Create a run folder, or continue in one that was made with the same configuration.

    Writes `config.yaml` and `versions.json` once.

    Args:
        config: JSON-able.
        upgraded: turns the configuration of an earlier version that the folder holds into a present one.
    Raises:
        ConfigError: the folder holds a run of another configuration (naming the keys that differ).
        DgreidError: it cannot be written.
    """
    make_folder(folder)
    frozen = folder / "config.yaml"
    if frozen.is_file():
        before = upgraded(yaml.safe_load(frozen.read_text(encoding="utf-8")) or {})
        if differing := sorted(_differences(before, json.loads(json.dumps(config)))):
            raise ConfigError(
                f"this run was started with another configuration ({', '.join(differing)} differ)",
                path=folder,
                fix="repeat the first command to continue it, delete the folder, or name another with RUN=<name>",
            )
        return folder
    write_text(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")
    write_text(frozen, yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False))
    return folder


def write_image_ids(folder: Path, image_ids: Iterable[str]) -> None:
    """Record which images a run learns from, as image_ids.txt: one id a line, sorted."""
    write_text(folder / "image_ids.txt", "".join(f"{one}\n" for one in sorted(set(image_ids))))


def read_image_ids(folder: Path) -> frozenset[str] | None:
    """The images a run learned from; None for a run from before they were recorded."""
    path = folder / "image_ids.txt"
    return frozenset(path.read_text(encoding="utf-8").split()) if path.is_file() else None


def versions() -> dict[str, Any]:
    """Package versions, Python, machine and code revision of this process."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": installed,
        "git": _git_revision(),
    }


def _git_revision() -> str | None:
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _differences(before: Any, now: Any, prefix: str = "") -> set[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        found: set[str] = set()
        for key in before.keys() | now.keys():
            found |= _differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    return set() if before == now else {prefix}


class Curves:
    """One row of numbers per epoch, in `folder`/metrics.csv and as TensorBoard events beside it.

    Args:
        folder: of the stage, inside the run folder.
        history: the rows of the epochs before an interruption; later ones of the interrupted process are dropped.
        written: False in all but one of several processes that train together: nothing is written.
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
