"""Which training run a command means."""

import re
from pathlib import Path

from shared.errors import ConfigError, DataError
from shared.workspace import Workspace


def run_folder(workspace: Workspace, name: str, *, must_exist: bool = True) -> Path:
    """The folder of a run by its name or path. Raises ConfigError for a bad name, DataError when it is not there."""
    folder = Path(name) if "/" in name else workspace.training_runs / name
    if not re.fullmatch(r"[A-Za-z0-9:+._-]+", folder.name) or folder.name in {".", ".."}:
        raise ConfigError(f"{folder.name!r} cannot be a run's name", fix="use letters, digits and + - _ . :")
    if must_exist and not (folder / "config.yaml").is_file():
        raise DataError("there is no such training run", path=folder, fix=_choices(workspace))
    return folder


def newest_run(workspace: Workspace) -> Path:
    """The run folder that was written to last. Raises DataError when there is none."""
    runs = [path.parent for path in workspace.training_runs.glob("*/config.yaml")]
    if not runs:
        raise DataError("there is no training run yet", path=workspace.training_runs, fix=_choices(workspace))
    return max(runs, key=lambda folder: max(file.stat().st_mtime_ns for file in folder.rglob("*")))


def _choices(workspace: Workspace) -> str:
    names = sorted(path.parent.name for path in workspace.training_runs.glob("*/config.yaml"))
    return f"RUN=<one of {', '.join(names)}>" if names else "make train PROTOCOL=<sources>2<targets> PRESET=tiny"
