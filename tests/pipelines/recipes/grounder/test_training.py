"""Training goes on where it was, and what it exports loads and says how good it is."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers (extra `local`) is not installed")

import numpy as np
import torch

from labeler.engines.local_transformers_model import LocalModel
from labeler.settings import Settings
from pipelines.recipes.grounder import training
from pipelines.recipes.grounder.card import export
from pipelines.recipes.grounder.scenes import RealScenes, Scenes, real_scenes
from pipelines.recipes.grounder.training import Recipe, Trainer
from shared.errors import DataError
from shared.schemas import PARTS


def scenes(count: int) -> Scenes:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 128, 64, 3), dtype=np.uint8)
    boxes = np.array([[[20, 5, 44, 30], [10, 30, 54, 70], [14, 66, 50, 124]]] * count, np.float32)
    return Scenes(list(pixels), boxes)


def trainer(folder: Path, steps: int) -> Trainer:
    recipe = Recipe(steps=steps, batch=2, seeing_share=0.3, warmup_steps=1)
    real = RealScenes(scenes(3), scenes(2), scenes(2))
    return Trainer(folder, recipe, real, scenes(4), device=torch.device("cpu"))


def test_a_run_continues_and_its_best_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_fit_patches", lambda _: None)  # needs more pictures than there are here
    monkeypatch.setattr(training, "score", lambda *_: training.compare(*perfect()))  # random weights box nothing
    run = tmp_path / "run"
    first = trainer(run, 2)
    with pytest.raises(DataError, match="no checkpoint"):
        export(first.checkpoint, tmp_path / "none", RealScenes(scenes(3), scenes(2), scenes(2)), scenes(2), {})
    first.run()
    again = trainer(run, 4)
    assert again.record["steps"] == 2 and again.share == 0.5
    again.run()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert {"dense", "answer", "place", "seen", "validation", "held_out"} <= set(lines[-1])
    told = {**again.record, "generated": 4, "command": "train"}
    scores = export(again.checkpoint, tmp_path / "out", RealScenes(scenes(3), scenes(2), scenes(2)), scenes(2), told)
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == scores
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not reached: held out photos head" in card and "4 steps of 2 pictures" in card
    local = LocalModel.load(Settings(model=str(tmp_path / "out"), device="cpu"))
    assert local.family.name == "qwen2.5-vl"
    assert sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) <= 12e6


def perfect() -> tuple[list, np.ndarray]:
    two = scenes(2)
    answers = [
        {part: (training.LabelStatus.OK, training.Box(*box)) for part, box in zip(PARTS, boxes.tolist(), strict=True)}
        for boxes in two.boxes
    ]
    return answers, two.boxes


def test_photos_are_split_by_the_hash_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.recipes.grounder.scenes.HELD_OUT", 2)
    monkeypatch.setattr("pipelines.recipes.grounder.scenes.VALIDATION", 1)
    monkeypatch.setattr("pipelines.recipes.grounder.scenes._photo", lambda path: np.full((9, 9, 3), int(path.stem)))
    rows = [f"{name}.jpg,9,9,{part},1,1,5,{name}" for name in range(6, 12) for part in PARTS]
    (tmp_path / "parts.csv").write_text("\n".join(["image,width,height,part,x_min,y_min,x_max,y_max", *rows]))
    split = real_scenes(tmp_path)
    assert (len(split.held_out), len(split.validation), len(split.training)) == (2, 1, 3)
    groups = [
        {int(one[0, 0, 0]) for one in group.pixels} for group in (split.held_out, split.validation, split.training)
    ]
    assert set.union(*groups) == set(range(6, 12)) and sum(map(len, groups)) == 6
    rows.reverse()  # the order of the table means nothing
    (tmp_path / "parts.csv").write_text("\n".join(["image,width,height,part,x_min,y_min,x_max,y_max", *rows]))
    assert {int(one[0, 0, 0]) for one in real_scenes(tmp_path).held_out.pixels} == groups[0]


def test_a_folder_without_truth_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"parts\.csv"):
        real_scenes(tmp_path)
