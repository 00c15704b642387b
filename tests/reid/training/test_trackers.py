"""Weights & Biases and MLflow without a network: name, configuration, curves, scores and report arrive there."""

import builtins
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reid.config import LogConfig, RunConfig, read_config
from reid.training.trackers import check_trackers, tell_trackers
from shared.errors import ConfigError
from shared.workspace import Workspace

Config = Callable[..., RunConfig]
TrainRun = Callable[[RunConfig, Path], None]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "of_wandb"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def records(file: bytes) -> bytes:
    """What a .wandb file holds: LevelDB's log format after a header of 7 bytes, blocks of 32 KiB, records behind
    a check sum, a length and a type."""
    found, place = b"", 7
    while place + 7 <= len(file):
        if 32_768 - place % 32_768 < 7:  # no room for a record
            place += 32_768 - place % 32_768
            continue
        length = int.from_bytes(file[place + 4 : place + 6], "little")
        found += file[place + 7 : place + 7 + length]
        place += 7 + length
    return found


@pytest.mark.usefixtures("sources")
def test_mlflow_holds_the_run(
    train_run: TrainRun, run_config: Config, workspace: Workspace, train_until: Callable[..., None]
) -> None:
    mlflow = pytest.importorskip("mlflow")
    folder, config = workspace.training_runs / "mine", run_config("log.mlflow=true", "stage2.epochs=3")
    train_until(config, folder, 3)
    train_run(config, folder)  # goes on in the same run
    report = folder / "report.md"
    report.write_text("scores")
    tell_trackers(folder, read_config(folder), summary={"scores/gamma/trained/mean_ap": 12.5}, files=[report])
    client = mlflow.MlflowClient(tracking_uri=(workspace.runs_root / "mlflow").absolute().as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("dgreid").experiment_id])
    assert run.info.run_name == "mine" and run.info.status == "FINISHED"
    assert run.data.params["stage2.epochs"] == "3" and run.data.params["model.backbone"] == "small"
    assert run.data.metrics["scores/gamma/trained/mean_ap"] == 12.5
    with (folder / "stage2" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    curve = client.get_metric_history(run.info.run_id, "stage2/loss")
    assert [(point.step, point.value) for point in curve] == [
        (int(row["epoch"]), pytest.approx(float(row["loss"]))) for row in rows
    ]
    assert client.get_metric_history(run.info.run_id, "stage1/loss")
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.md"]


@pytest.mark.usefixtures("sources")
def test_wandb_keeps_the_run_in_its_folder_without_a_network(
    train_run: TrainRun, run_config: Config, workspace: Workspace
) -> None:
    pytest.importorskip("wandb")
    folder = workspace.training_runs / "mine"
    train_run(run_config("log.wandb=true"), folder)
    tell_trackers(folder, read_config(folder), summary={"scores/gamma/trained/mean_ap": 12.5})
    words = (b"mine", b"stage1/loss", b"stage2/mask_iou", b"stage2.epochs", b"scores/gamma/trained/mean_ap")
    deadline, content = time.monotonic() + 30, b""
    # W&B's own process ends the file a moment after finish() has returned
    while not all(word in content for word in words) and time.monotonic() < deadline:
        time.sleep(0.05)
        kept = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
        content = b"".join(records(path.read_bytes()) for path in kept)
    for word in words:
        assert word in content, word
    assert len({path.stem for path in kept}) == 1  # one run


def test_a_package_that_is_missing_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str, *given: Any, **named: Any) -> Any:
        if name == "wandb":
            raise ImportError("No module named 'wandb'")
        return real(name, *given, **named)

    real = builtins.__import__
    monkeypatch.setattr("reid.training.trackers.importlib.import_module", without)
    with pytest.raises(ConfigError, match=r"pip install 'dgreid\[wandb\]'"):
        check_trackers(LogConfig(wandb=True))
    check_trackers(LogConfig())
