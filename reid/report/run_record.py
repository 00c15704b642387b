"""Reads what a run left in its folder; only the scores are indispensable, all else may be missing."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reid.evaluation.results import RunResults, read_results
from shared.errors import DataError


@dataclass(frozen=True)
class RunRecord:
    """One run folder, read. Empty mappings and lists stand for files that are not there."""

    folder: Path
    results: RunResults
    training_set: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, Any]
    stage1: list[dict[str, float]]  # one mapping per epoch
    stage2: list[dict[str, float]]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def sources(self) -> list[str]:
        return list(self.training_set.get("sources", []))

    @property
    def targets(self) -> list[str]:
        return self.results.targets

    @property
    def label_run(self) -> str | None:
        return self.training_set.get("label_run")


def read_run(folder: Path) -> RunRecord:
    """Read a run folder. Raises DataError when it is not there, has not been evaluated or holds a damaged file."""
    folder = folder.absolute()
    if not folder.is_dir():
        raise DataError("there is no such run", path=folder, fix="dgreid train <sources>2<target>")
    return RunRecord(
        folder=folder,
        results=read_results(folder),
        training_set=_read_json(folder / "training_set.json", "run the same dgreid train command again"),
        config=_read_config(folder / "config.yaml"),
        versions=_read_json(folder / "versions.json", "delete it and write the report again"),
        stage1=_read_metrics(folder / "stage1" / "metrics.csv"),
        stage2=_read_metrics(folder / "stage2" / "metrics.csv"),
    )


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise DataError(f"not readable as JSON ({err})", path=path, fix=remedy) from err
    if not isinstance(found, dict):
        raise DataError("not a JSON object", path=path, fix=remedy)
    return found


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as err:
        problem = str(err).splitlines()[0]
        raise DataError(f"not readable as YAML ({problem})", path=path, fix="restore the file") from err


def _read_metrics(path: Path) -> list[dict[str, float]]:
    """Epochs of a metrics file; a line that was cut while being written is left out."""
    if not path.is_file():
        return []
    epochs = []
    with path.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            try:
                epochs.append({name: float(value) for name, value in line.items() if value != ""})
            except (TypeError, ValueError):
                continue
    return epochs
