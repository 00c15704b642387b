"""A run's name, configuration, curves, scores and report in Weights & Biases or MLflow, for those who keep runs there.

`log.wandb=true` and `log.mlflow=true` need the extras of the same names. Both work without a network: W&B with
WANDB_MODE=offline (it writes to the run folder, `wandb sync` sends it later), MLflow by itself: without
MLFLOW_TRACKING_URI it writes to <runs>/mlflow. trackers.json of the run folder says which runs there are this one's,
so that a resumed training, its scores and its report go to the same place.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from reid.config import LogConfig, RunConfig, flat_settings
from shared.errors import ConfigError
from shared.files import write_text

_RECORD = "trackers.json"


class Tracker(Protocol):
    def curves(self, stage: str, row: Mapping[str, float]) -> None:
        """One epoch's row of metrics.csv."""

    def summary(self, values: Mapping[str, float]) -> None:
        """Numbers of the run as a whole, e.g. its final scores."""

    def files(self, paths: Iterable[Path]) -> None:
        """Files to keep with the run."""

    def close(self) -> None:
        """Everything was told for now; the run may be opened again."""


def open_trackers(run_folder: Path, config: RunConfig) -> list[Tracker]:
    """The trackers that the configuration names; the run is opened there, or opened again.

    Raises ConfigError when a package is missing.
    """
    makers: dict[str, Callable[[Any, Path, RunConfig], Tracker]] = {"wandb": _WandbRun, "mlflow": _MlflowRun}
    return [make(_package(name), run_folder, config) for name, make in makers.items() if getattr(config.log, name)]


def tell_trackers(
    run_folder: Path, config: RunConfig, *, summary: Mapping[str, float] | None = None, files: Iterable[Path] = ()
) -> None:
    """Add final numbers and files to a run where it is tracked. Raises as `open_trackers`."""
    for tracker in open_trackers(run_folder, config):
        if summary:
            tracker.summary(summary)
        tracker.files(files)
        tracker.close()


class _WandbRun:
    def __init__(self, wandb: Any, run_folder: Path, config: RunConfig) -> None:
        known = _known(run_folder)
        self._run = wandb.init(
            project=config.log.project,
            name=run_folder.name,
            id=known.get("wandb"),
            dir=str(run_folder),
            config=flat_settings(config.model_dump(mode="json")),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        _remember(run_folder, known, wandb=self._run.id)
        for stage in ("stage1", "stage2"):
            self._run.define_metric(f"{stage}/epoch")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/epoch")

    def curves(self, stage: str, row: Mapping[str, float]) -> None:
        self._run.log({f"{stage}/{name}": value for name, value in row.items()})

    def summary(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def files(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self._run.save(str(path), base_path=str(path.parent), policy="now")

    def close(self) -> None:
        self._run.finish()


class _MlflowRun:
    def __init__(self, mlflow: Any, run_folder: Path, config: RunConfig) -> None:
        known, here = _known(run_folder), os.environ.get("MLFLOW_TRACKING_URI")
        if not here:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder is all that is needed
        address = here or (run_folder.parents[1] / "mlflow").absolute().as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=address)
        found = known.get("mlflow")
        if found is None:
            project = config.log.project
            experiment = self._client.get_experiment_by_name(project)
            number = experiment.experiment_id if experiment else self._client.create_experiment(project)
            found = self._client.create_run(number, run_name=run_folder.name).info.run_id
            _remember(run_folder, known, mlflow=found)
            for name, value in flat_settings(config.model_dump(mode="json")).items():
                self._client.log_param(found, name, str(value)[:500])
        self._id = found

    def curves(self, stage: str, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "epoch":
                self._client.log_metric(self._id, f"{stage}/{name}", value, step=int(row["epoch"]))

    def summary(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value)

    def files(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self._client.log_artifact(self._id, str(path))

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise ConfigError(
            f"log.{name}=true needs a package that is not installed ({err})", fix=f"pip install 'dgreid[{name}]'"
        ) from err


def check_trackers(config: LogConfig) -> None:
    """Raises ConfigError when a tracker is asked for whose package is missing; nothing is opened."""
    for name in ("wandb", "mlflow"):
        if getattr(config, name):
            _package(name)


def _known(run_folder: Path) -> dict[str, str]:
    path = run_folder / _RECORD
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _remember(run_folder: Path, known: dict[str, str], **ids: str) -> None:
    write_text(run_folder / _RECORD, json.dumps({**known, **_known(run_folder), **ids}, indent=2) + "\n")
