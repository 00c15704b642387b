"""What is found out about the targets before hours of training, and what a run records of its own images."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from reid.config import RunConfig
from reid.evaluation.evaluate import evaluate_run
from reid.protocols.protocol import parse_protocol
from reid.training.run_folder import read_image_ids, read_training_images
from reid.training.train import train
from shared.errors import ConfigError, DataError
from shared.manifest import build_manifest, read_manifest
from shared.workspace import Workspace

Config = Callable[..., RunConfig]
TrainRun = Callable[[RunConfig, Path], None]
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


def one_camera(workspace: Workspace, name: str) -> None:
    """Turn a target into one whose images are all of camera 1."""
    for path in (workspace.data_root / name).rglob("*_c2s1_*.png"):
        path.rename(path.with_name(path.name.replace("_c2s1_", "_c1s1_")))
    build_manifest(name, workspace.data_root, workspace.manifest(name))


@pytest.mark.usefixtures("sources")
def test_a_target_with_one_camera_is_named_before_training(
    workspace: Workspace, run_config: Config, train_run: TrainRun, tmp_path: Path
) -> None:
    one_camera(workspace, "gamma")
    with pytest.raises(DataError, match=r"no target can be scored: no query of gamma [\s\S]*another camera"):
        train_run(run_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("sources")
def test_it_does_not_cost_the_other_targets(
    workspace: Workspace,
    add_dataset: Callable[..., Any],
    run_config: Config,
    train_run: TrainRun,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_dataset("delta", test=True)
    one_camera(workspace, "gamma")
    with caplog.at_level(logging.WARNING):
        train_run(run_config(protocol="alpha+beta2gamma+delta"), tmp_path / "run")
    assert "target gamma cannot be scored: no query of gamma" in caplog.text and "delta" not in caplog.text


@pytest.mark.usefixtures("sources")
def test_a_target_that_is_not_here_is_said(
    workspace: Workspace,
    run_config: Config,
    train_run: TrainRun,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.rmtree(workspace.data_root / "gamma")
    workspace.manifest("gamma").unlink()
    with caplog.at_level(logging.WARNING):
        train_run(run_config(protocol="alpha+beta2viper"), tmp_path / "run")
    assert "target viper is not checked: no manifest yet" in caplog.text


@pytest.mark.usefixtures("sources")
def test_a_copy_under_another_name_is_no_target(
    workspace: Workspace, run_config: Config, train_run: TrainRun, tmp_path: Path
) -> None:
    copied = next((workspace.data_root / "alpha" / "bounding_box_train").iterdir())
    shutil.copy(copied, workspace.data_root / "gamma" / "bounding_box_test" / "0001_c2s1_000099_00.png")
    build_manifest("gamma", workspace.data_root, workspace.manifest("gamma"))
    with pytest.raises(
        ConfigError, match=r"1 query and gallery images of gamma are trained on, e\.g\. bounding_box_test/"
    ):
        train_run(run_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("sources")
def test_a_run_records_its_images_and_the_scores_of_those_are_marked(
    workspace: Workspace, run_config: Config, train_run: TrainRun, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_run(run_config("data.validation_share=0.3"), run)
    rows = [row for name in ("alpha", "beta") for row in read_manifest(workspace.manifest(name))]
    assert read_image_ids(run) == {row.image_id for row in rows}  # held-out ones too: the epoch is chosen by them
    files = read_training_images(run)
    assert files is not None and files < {(row.dataset, row.path) for row in rows}  # and these are those of the steps
    assert len(files) == json.loads((run / "training_set.json").read_text())["images"]
    assert "trained on" not in evaluate_run(run, workspace).protocol
    copied = next((workspace.data_root / "beta" / "bounding_box_train").iterdir())
    shutil.copy(copied, workspace.data_root / "gamma" / "bounding_box_test" / "0001_c2s1_000099_00.png")
    build_manifest("gamma", workspace.data_root, workspace.manifest("gamma"))
    assert evaluate_run(run, workspace).protocol.endswith("| 1 test images of gamma were trained on")


@pytest.mark.usefixtures("sources")
def test_a_run_of_an_earlier_version_is_resumed(
    workspace: Workspace, run_config: Config, train_run: TrainRun, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", run_config()
    train_run(config, run)
    before = config.model_dump(mode="json")
    before["data"]["visible_share"] = before["data"].pop("patch_coverage")
    before["data"]["crop_keeps"] = before["data"].pop("min_box_visibility")
    del before["model"]["pretrained_on"], before["allow_pretrained_targets"]
    (run / "config.yaml").write_text(yaml.safe_dump(before, sort_keys=False))
    train_run(config, run)
    with pytest.raises(ConfigError, match=r"another configuration \(data\.patch_coverage differ\)"):
        train_run(run_config("data.patch_coverage=0.75"), run)
    assert json.loads((run / "training_set.json").read_text())["images"] > 0


@pytest.mark.usefixtures("sources")
def test_protocol_and_configuration_belong_together(workspace: Workspace, run_config: Config, tmp_path: Path) -> None:
    protocol = parse_protocol("alpha2gamma", workspace.data_root)
    with pytest.raises(ConfigError, match="for protocol 'alpha\\+beta2gamma', not 'alpha2gamma'"):
        train(protocol, run_config(), workspace, tmp_path / "run")
