import json
from pathlib import Path

import pytest
import yaml

from reid.training.run_folder import open_run, trained_at
from shared.errors import ConfigError

CONFIG = {"seed": 0, "stage": {"lr": 0.1, "milestones": (1, 2)}}


def test_a_run_freezes_its_configuration_and_versions(tmp_path: Path) -> None:
    open_run(tmp_path / "run", CONFIG)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["stage"] == {"lr": 0.1, "milestones": [1, 2]}
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert {"python", "packages", "machine", "git", "started"} <= versions.keys()


def train(folder: Path) -> None:
    (folder / "stage1").mkdir()
    (folder / "stage1" / "latest.pt").touch()


def test_the_same_configuration_continues_and_another_is_refused_by_its_keys(tmp_path: Path) -> None:
    open_run(tmp_path / "run", CONFIG)
    train(tmp_path / "run")
    before = (tmp_path / "run" / "versions.json").read_text()
    open_run(tmp_path / "run", CONFIG)
    assert (tmp_path / "run" / "versions.json").read_text() == before
    with pytest.raises(ConfigError, match=r"stage\.lr differ"):
        open_run(tmp_path / "run", {"seed": 0, "stage": {"lr": 0.2, "milestones": (1, 2)}})


def test_before_it_has_trained_a_run_may_get_another_configuration(tmp_path: Path) -> None:
    open_run(tmp_path / "run", CONFIG)
    assert trained_at(tmp_path / "run") is None
    open_run(tmp_path / "run", {"seed": 1})
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == {"seed": 1}
    train(tmp_path / "run")
    assert trained_at(tmp_path / "run") is not None
    with pytest.raises(ConfigError, match=r"seed, stage\.lr, stage\.milestones differ"):
        open_run(tmp_path / "run", CONFIG)
