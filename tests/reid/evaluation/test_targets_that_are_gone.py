"""What became of a target's folder after the training costs its own scores, and no other's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluate import evaluate
from reid.config import RunConfig
from reid.protocols.protocol import parse_protocol
from shared.errors import ConfigError, DgreidError
from shared.workspace import Workspace


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def dangling(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent / "moved away")


def file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def undescribed(folder: Path) -> None:
    (folder / "dataset.yaml").unlink()


def damaged(folder: Path) -> None:
    (folder / "dataset.yaml").write_text("layout: [")


def without_query(folder: Path) -> None:
    shutil.rmtree(folder / "query")


def without_gallery(folder: Path) -> None:
    shutil.rmtree(folder / "bounding_box_test")


def without_images(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()


def unreadable_images(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")


KINDS = {
    gone: "unknown data set 'delta2'",
    emptied: "is an empty folder",
    dangling: "is a link to what is not there",
    file: "is no folder",
    undescribed: "is a folder without dataset.yaml",
    damaged: "not YAML",
    without_query: "no valid queries",
    without_gallery: "no valid queries",
    without_images: "no image of delta2",
    unreadable_images: "no valid queries",
}


@pytest.mark.usefixtures("sources")
def test_it_is_named_and_the_others_are_scored(
    workspace: Workspace,
    add_dataset: Callable[..., Any],
    run_config: Callable[..., RunConfig],
    train_run: Callable[[RunConfig, Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_dataset("delta2", test=True)
    run = workspace.runs_root / "train" / "run"
    train_run(run_config(protocol="alpha+beta2gamma+delta2"), run)
    monkeypatch.setenv("DATA_ROOT", str(workspace.data_root))
    monkeypatch.setenv("RUNS_ROOT", str(workspace.runs_root))
    folder, kept = workspace.data_root / "delta2", workspace.runs_root / "kept"
    shutil.copytree(folder, kept)
    for change, why in KINDS.items():
        change(folder)
        with pytest.raises(DgreidError, match="1 of 2 targets could not be scored") as told:
            evaluate(run="run", target=None, device="cpu", re_ranking=None, untrained=False, allow_source=False)
        assert "delta2" in told.value.what and why in told.value.what, change
        scores = json.loads((run / "scores.json").read_text())
        assert list(scores["scores"]) == ["gamma"] and why in scores["failed"]["delta2"]
        (folder.unlink if folder.is_symlink() or folder.is_file() else lambda: shutil.rmtree(folder, True))()
        shutil.copytree(kept, folder)
    evaluate(run="run", target=None, device="cpu", re_ranking=None, untrained=False, allow_source=False)
    scores = json.loads((run / "scores.json").read_text())
    assert sorted(scores["scores"]) == ["delta2", "gamma"] and not scores["failed"]


def test_names_of_a_finished_run_need_no_folders(workspace: Workspace, add_dataset: Callable[..., Any]) -> None:
    add_dataset("alpha")
    with pytest.raises(ConfigError, match="unknown data set 'gone2'"):
        parse_protocol("alpha2gone2", workspace.data_root)
    found = parse_protocol("alpha2gone2+viper", workspace.data_root, finished=True)
    assert (found.sources, found.targets) == (("alpha",), ("gone2", "viper"))
    found = parse_protocol("lost2viper", workspace.data_root, finished=True)
    assert (found.sources, found.targets) == (("lost",), ("viper",))
    with pytest.raises(ConfigError, match="can be read in 2 ways"):
        parse_protocol("x2y2z", workspace.data_root, finished=True)
