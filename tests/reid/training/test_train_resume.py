import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from reid.config import RunConfig
from reid.model.checkpoint import load_checkpoint
from shared.errors import ConfigError, DgreidError
from shared.workspace import Workspace

Config = Callable[..., RunConfig]
TrainRun = Callable[[RunConfig, Path], None]

CHILD = """
import sys, torch, yaml
from pathlib import Path
from reid.config import parse_config
from shared.workspace import Workspace

torch.set_num_threads(1)
config, data, runs, folder = map(Path, sys.argv[1:])
train(parse_config(yaml.safe_load(config.read_text()), "test"), Workspace(data, runs), folder)
"""


@pytest.mark.usefixtures("sources")
def test_a_process_killed_at_any_moment_continues_to_the_same_bits(
    train_run: TrainRun, workspace: Workspace, run_config: Config, tmp_path: Path
) -> None:
    config = run_config("stage1.epochs=3", "stage2.epochs=3")
    train_run(config, tmp_path / "whole")
    given = tmp_path / "given.yaml"
    given.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", CHILD, given, workspace.data_root, workspace.runs_root, folder]
    for moment in ("stage1/latest.pt", "stage2/latest.pt"):
        child = subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL)
        while child.poll() is None and not (folder / moment).exists():
            time.sleep(0.002)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
    train_run(config, folder)
    whole, _ = load_checkpoint(tmp_path / "whole" / "stage2" / "latest.pt")
    killed, meta = load_checkpoint(folder / "stage2" / "latest.pt")
    assert meta["epoch"] == 3
    assert all(torch.equal(killed["model"][name], tensor) for name, tensor in whole["model"].items())


@pytest.mark.usefixtures("sources")
def test_the_run_folder_says_what_made_it(train_run: TrainRun, run_config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_run(run_config(), folder)
    record = json.loads((folder / "training_set.json").read_text())
    assert (record["sources"], record["label_run"]) == (["alpha", "beta"], "first")
    assert (record["images"], record["identities"], record["cameras"], record["dropped"]) == (32, 8, 4, {})
    assert yaml.safe_load((folder / "config.yaml").read_text())["protocol"] == "alpha+beta2gamma"
    written = (folder / "stage2" / "latest.pt").stat().st_mtime_ns
    train_run(run_config(), folder)  # a finished run has nothing left to do
    assert (folder / "stage2" / "latest.pt").stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="another configuration"):
        train_run(run_config("seed=1"), folder)


@pytest.mark.usefixtures("sources")
def test_an_image_that_broke_after_the_scan_is_named(
    train_run: TrainRun, workspace: Workspace, run_config: Config, tmp_path: Path
) -> None:
    path = next((workspace.data_root / "beta" / "bounding_box_train").iterdir())
    path.write_bytes(b"no image")
    with pytest.raises(DgreidError, match="changed after the data set was scanned") as caught:
        train_run(run_config(), tmp_path / "run")
    assert str(path) in str(caught.value)


@pytest.mark.usefixtures("sources")
def test_half_precision_without_a_gpu_is_refused(train_run: TrainRun, run_config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="16-mixed needs a GPU"):
        train_run(run_config("precision=16-mixed"), tmp_path / "run")
