"""Training resumes, averages its weights as specified, and its release loads and states its scores."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers (extra `local`) is not installed")

import numpy as np
import torch

from labeler.engines.local_transformers_model import LocalModel
from labeler.settings import Settings
from pipelines.recipes.grounder import training
from pipelines.recipes.grounder.release import write_release
from pipelines.recipes.grounder.scenes import RealScenes, Scenes, real_scenes
from pipelines.recipes.grounder.training import GrounderTraining, Trainer, averaged_model
from shared.errors import DataError
from shared.schemas import PARTS


def scenes(count: int) -> Scenes:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 128, 64, 3), dtype=np.uint8)
    boxes = np.array([[[20, 5, 44, 30], [10, 30, 54, 70], [14, 66, 50, 124]]] * count, np.float32)
    return Scenes(list(pixels), boxes)


def trainer(folder: Path, steps: int) -> Trainer:
    config = GrounderTraining(steps=steps, batch=2, vision_share=0.3, warmup_steps=1)
    real = RealScenes(scenes(3), scenes(2), scenes(2))
    return Trainer(folder, config, real, scenes(4), device=torch.device("cpu"))


def test_a_run_resumes_and_its_averaged_weights_are_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_init_patch_embedding", lambda _: None)  # needs more pictures than there are here
    monkeypatch.setattr(training, "score", lambda *_: training.score_boxes(*perfect()))  # random weights box nothing
    run = tmp_path / "run"
    first = trainer(run, 2)
    with pytest.raises(DataError, match="no checkpoint"):
        write_release(first.checkpoint, tmp_path / "none", RealScenes(scenes(3), scenes(2), scenes(2)), scenes(2), {})
    first.run()
    again = trainer(run, 4)
    assert again.record["steps"] == 2 and again.budget_used == 0.5
    again.run()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert {"dense", "answer", "position", "vision", "validation", "held_out"} <= set(lines[-1])
    record = {**again.record, "generated": 4, "command": "train"}
    scores = write_release(
        again.checkpoint, tmp_path / "out", RealScenes(scenes(3), scenes(2), scenes(2)), scenes(2), record
    )
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == scores
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not reached: held out photos head" in card and "4 steps of 2 images" in card
    local = LocalModel.load(Settings(model=str(tmp_path / "out"), device="cpu"))
    assert local.family.name == "qwen2.5-vl"
    assert sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) <= 12e6


@pytest.mark.parametrize("decay", [0.995, 0.3])
def test_weights_are_averaged_with_a_decay_that_grows_to_its_limit(decay: float) -> None:
    model = torch.nn.Linear(3, 2).double()
    averaged = averaged_model(model, decay)
    expected = model.weight.detach().clone()
    for step in range(1, 40):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        averaged.update_parameters(model)
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * model.weight.detach()
        torch.testing.assert_close(averaged.module.weight.detach(), expected, rtol=1e-12, atol=1e-12)
    assert not averaged.module.training


def test_a_state_that_cannot_be_resumed_is_named_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_init_patch_embedding", lambda _: None)
    torch.save({"model": {}}, tmp_path / training.STATE)
    with pytest.raises(DataError, match="cannot resume"):
        trainer(tmp_path, 2)
    assert (tmp_path / training.STATE).is_file()


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
