"""Which training run a command means."""

import re
from pathlib import Path

from reid.training.run_folder import trained_at
from shared.errors import ConfigError, DataError, did_you_mean
from shared.workspace import Workspace

TRAIN = "dgreid train <sources>2<targets> --preset tiny"


def run_folder(workspace: Workspace, name: str, *, must_exist: bool = True) -> Path:
    """The folder of a run by its name or path. Raises ConfigError for a bad name, DataError when it is not there."""
    elsewhere = "/" in name
    folder = Path(name) if elsewhere else workspace.training_runs / name
    if not re.fullmatch(r"[A-Za-z0-9:+._-]+", folder.name) or folder.name in {".", ".."}:
        raise ConfigError(f"{folder.name!r} cannot be a run's name", fix="use letters, digits and + - _ . :")
    kept = folder if elsewhere else workspace.runs_root / "train" / name
    if must_exist and not (kept / "config.yaml").is_file():
        names = sorted(run.name for run in workspace.stored_runs())
        raise DataError(
            f"there is no such training run{did_you_mean(folder.name, names)}",
            path=kept,
            fix=f"--run <one of {', '.join(names)}>" if names else TRAIN,
        )
    return folder if elsewhere else workspace.training_run(name)


def name_of(workspace: Workspace, folder: Path) -> str:
    """What `run_folder` finds a run by: its name, or its path when it lies elsewhere."""
    return folder.name if folder == workspace.training_runs / folder.name else str(folder)


def newest_run(workspace: Workspace) -> Path:
    """The run that trained last: finished, or begun and resumable. One that failed before it trained does not count.

    Raises DataError when there is none.
    """
    runs = {folder: trained_at(folder) for folder in workspace.stored_runs()}
    trained = {folder: when for folder, when in runs.items() if when is not None}
    if not trained:
        raise DataError("there is no training run yet", path=workspace.runs_root / "train", fix=TRAIN)
    return workspace.training_run(max(trained, key=lambda folder: (trained[folder], folder.name)).name)
