"""The checkpoint that comes with the project: small, complete, and as good as its scores say, on people drawn here."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers (extra `local`) is not installed")

import numpy as np

from labeler.engines.local_transformers_model import LocalModel
from labeler.grounding.coordinates import FAMILIES
from labeler.grounding.prompts import PromptMode, Prompts
from labeler.grounding.vocabulary import SHARED
from labeler.pocket import CHECKPOINT as POCKET_GROUNDER
from labeler.settings import Settings
from pipelines.recipes.grounder.scenes import GENERATED_SIZE, Scenes
from pipelines.recipes.grounder.scoring import score
from pipelines.synthetic import DOMAINS, render_person
from shared.body_prior import prior_box
from shared.geometry import Box, iou
from shared.schemas import PARTS

pytestmark = pytest.mark.skipif(
    not (POCKET_GROUNDER / "scores.json").exists(), reason="no pocket grounder: python -m pipelines train-grounder"
)
OTHER_SEED = 77  # than that of the people it was trained on


@pytest.fixture(scope="module")
def scores() -> dict:
    return json.loads((POCKET_GROUNDER / "scores.json").read_text())


@pytest.fixture(scope="module")
def people() -> Scenes:
    drawn = [
        render_person(DOMAINS[index % len(DOMAINS)], index, 1 + index % 3, 0, seed=OTHER_SEED, size=GENERATED_SIZE)
        for index in range(48)
    ]
    boxes = [[one.parts[part] or (np.nan,) * 4 for part in PARTS] for one in drawn]
    return Scenes([one.pixels for one in drawn], np.array(boxes, np.float32))


def test_it_is_small_and_complete() -> None:
    files = {file.name: file.stat().st_size for file in POCKET_GROUNDER.iterdir()}
    assert sum(files.values()) <= 12 * 2**20
    assert {"model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json", "README.md"} <= set(files)
    assert not [name for name in files if Path(name).suffix in {".bin", ".pt", ".pkl", ".jpg", ".png"}]


def test_it_was_trained_on_the_questions_that_are_asked(scores: dict) -> None:
    asked = {mode: Prompts.choose(FAMILIES["qwen2.5-vl"], mode, SHARED).version for mode in scores["prompt_versions"]}
    assert scores["prompt_versions"] == asked, "the prompts changed: train the grounder again"


@pytest.mark.parametrize("mode", ["joint", "per_part"])
def test_it_grounds_people_it_never_saw(scores: dict, people: Scenes, mode: PromptMode) -> None:
    local = LocalModel.load(Settings(model=str(POCKET_GROUNDER), device="cpu", dtype="float32"))
    found = score(local, people, mode)
    assert found.parsed >= 0.99
    for index, part in enumerate(PARTS):
        prior = prior_box(part, *GENERATED_SIZE)
        assert prior is not None
        truth = [Box(*map(float, box[index])) for box in people.boxes if np.isfinite(box[index]).all()]
        assert found.iou[part] > np.mean([iou(prior, box) for box in truth]) + 0.05
        assert found.iou[part] == pytest.approx(scores["generated"][mode][part], abs=0.1)
