import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image

from pipelines.recipes.clip import training
from pipelines.recipes.clip.people import generated_people, real_people
from pipelines.recipes.clip.release import model_card, pretrained_on, write_release
from pipelines.recipes.clip.scoring import encode_images, score_people
from pipelines.recipes.clip.training import ClipTraining, clip_training, train_clip
from pipelines.synthetic.people import person
from reid.config import ModelConfig, load_config
from reid.model.backbone import load_clip
from shared.errors import ConfigError, DataError
from shared.manifest import build_manifest
from shared.workspace import Workspace
from tests.pipelines.recipes.clip.conftest import SHIPPED

SMALL = {"device": "cpu", "precision": "32-true", "sources": (), "identities": 12, "views": 1, "batch": 6, "steps": 2}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "data", tmp_path / "runs")


def test_an_interrupted_training_continues_to_the_same_bits(
    small_clip: ModelConfig, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ClipTraining(**SMALL, rounds=3)
    whole = train_clip(config, small_clip, workspace, tmp_path / "whole").state_dict()
    drawn, calls = training.draw_batch, []

    def stops(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:  # in the second round
            raise KeyboardInterrupt
        return drawn(*arguments)

    monkeypatch.setattr(training, "draw_batch", stops)
    with pytest.raises(KeyboardInterrupt):
        train_clip(config, small_clip, workspace, tmp_path / "parts")
    parts = train_clip(config, small_clip, workspace, tmp_path / "parts").state_dict()
    assert len(calls) == 4 + 4, "the second round is repeated, the first is not"
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    rows = list(csv.DictReader((tmp_path / "parts" / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    with pytest.raises(ConfigError, match="another configuration"):
        train_clip(ClipTraining(**SMALL, rounds=4), small_clip, workspace, tmp_path / "parts")


def test_training_learns_the_captions_it_is_shown(
    small_clip: ModelConfig, workspace: Workspace, tmp_path: Path
) -> None:
    config = ClipTraining(**{**SMALL, "batch": 16, "steps": 40}, rounds=3, warmup_steps=10, lr=3e-3)
    train_clip(config, small_clip, workspace, tmp_path)
    loss = [float(row["loss"]) for row in csv.DictReader((tmp_path / "metrics.csv").open())]
    assert loss[2] < min(loss[0], np.log(16)) - 0.05, "better than guessing among 16"


def test_the_release_is_a_folder_that_open_clip_and_our_presets_read(
    small_clip: ModelConfig, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.recipes.clip.release.UNSEEN_PEOPLE", 6)
    config = ClipTraining(**{**SMALL, "identities": 30}, rounds=1)
    clip = train_clip(config, small_clip, workspace, tmp_path)
    scores = write_release(clip, config, small_clip, workspace, tmp_path)
    release = tmp_path / "release"
    assert {path.name for path in release.iterdir()} == {
        "open_clip_config.json", "open_clip_model.safetensors", "scores.json", "README.md",
    }  # fmt: skip
    assert json.loads((release / "scores.json").read_text()) == json.loads(json.dumps(scores))
    card = (release / "README.md").read_text()
    assert scores["weights_sha256"] in card and scores["pretrained_on"] == [] == card_metadata(card)["pretrained_on"]
    theirs = open_clip.create_model(f"local-dir:{release}").eval()
    ours = load_clip(
        small_clip.model_copy(
            update={
                "weights_file": release / "open_clip_model.safetensors",
                "weights_sha256": scores["weights_sha256"],
            }
        )
    ).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 64, 3), np.uint8)
    torch.testing.assert_close(encode_images(theirs, pixels), encode_images(ours, pixels))
    assert clip.state_dict().keys() == ours.state_dict().keys()


def test_real_people_are_training_identities_with_words_and_nobody_else(workspace: Workspace) -> None:
    folder = workspace.data_root / "3DPeS"
    for split, number in (("bounding_box_train", 1), ("bounding_box_train", 2), ("query", 3)):
        path = folder / split / f"{number:04d}_c1s1_000001_00.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 40), (60 * number, 0, 0)).save(path)
    (folder / "bounding_box_test").mkdir()
    build_manifest("3dpes", workspace.data_root, workspace.manifest("3dpes"))
    with pytest.raises(DataError, match="attribute words"):
        real_people(("3dpes",), workspace)
    words = "dataset,person_id,attributes\n3DPeS,2,upperBodyRed lowerBodyBlue\n3DPeS,3,upperBodyBlack\n"
    (workspace.data_root / "attributes.csv").write_text(words)
    found = real_people(("3dpes",), workspace)
    assert found.names == ("3dpes/2",) and found.facts == (("upperBodyRed", "lowerBodyBlue"),)
    assert found.pixels.shape == (1, 128, 64, 3) and found.pixels[0, :, :, 0].mean() == pytest.approx(120, abs=3)
    (workspace.data_root / "attributes.csv").write_text("dataset,person_id,attributes\n3DPeS,three,upperBodyRed\n")
    with pytest.raises(DataError, match="three"):
        real_people(("3dpes",), workspace)


def test_generated_people_are_drawn_once_and_are_not_the_demos(tmp_path: Path) -> None:
    first = generated_people("plaza", 3, 2, tmp_path)
    written = (tmp_path / "plaza-3x2.npy").stat().st_mtime_ns
    again = generated_people("plaza", 3, 2, tmp_path)
    assert (tmp_path / "plaza-3x2.npy").stat().st_mtime_ns == written
    assert np.array_equal(first.pixels, again.pixels) and first.owners.tolist() == [0, 0, 1, 1, 2, 2]
    assert [person("plaza", n, 0).outfit for n in (1, 2, 3)] != [person("plaza", n, 29).outfit for n in (1, 2, 3)]


def test_a_setting_out_of_range_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="rounds"):
        clip_training(rounds=0)


def card_metadata(card: str) -> dict:
    """The YAML header of a model card."""
    return yaml.safe_load(card.split("---\n")[1])


def test_a_release_lists_its_sources_by_canonical_name(tmp_path: Path, small_clip: ModelConfig) -> None:
    scores = json.loads((SHIPPED / "scores.json").read_text())
    names = ("3DPeS", "CAVIAR4REID")
    config = ClipTraining(**{**SMALL, "sources": names}, rounds=1)
    assert pretrained_on(config, Workspace(tmp_path, tmp_path)) == ["3dpes", "caviar"]
    card = model_card({**scores, "pretrained_on": ["3dpes", "caviar"]}, 12_000_000, small_clip.architecture or {})
    assert card_metadata(card)["pretrained_on"] == ["3dpes", "caviar"]
    assert "the training identities of 3dpes, caviar with" in card


@pytest.fixture
def shipped() -> Callable[[str], Path]:
    if not (SHIPPED / "scores.json").is_file():
        pytest.skip("the pocket CLIP is not in this checkout")
    return lambda name: SHIPPED / name


def test_the_preset_and_the_shipped_files_say_the_same(shipped: Callable[[str], Path]) -> None:
    model = load_config("pocket").model
    about = json.loads(shipped("open_clip_config.json").read_text())
    assert about["model_cfg"] == model.architecture
    weights = shipped("open_clip_model.safetensors")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert model.weights_sha256 == digest == json.loads(shipped("scores.json").read_text())["weights_sha256"]
    scores, card = json.loads(shipped("scores.json").read_text()), shipped("README.md").read_text()
    assert digest in card
    assert scores["pretrained_on"] == card_metadata(card)["pretrained_on"] == scores["training"]["sources"]
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 12_000_000


def test_the_preset_finds_the_shipped_weights_from_any_folder(
    shipped: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tuple(load_clip(load_config("pocket").model).visual.image_size) == (128, 64)


def test_the_shipped_model_knows_the_clothes_of_people_drawn_for_this_test(
    shipped: Callable[[str], Path], tmp_path: Path
) -> None:
    people = generated_people("night", 80, 1, tmp_path)  # a place that it was never trained on
    found = score_people(load_clip(load_config("pocket").model).eval(), people)
    for garment in ("upper_colour", "lower_colour"):
        assert found[garment]["accuracy"] > found[garment]["always_the_commonest"]
        assert found[garment]["balanced_accuracy"] > 2 * found[garment]["by_chance"]
    assert found["retrieval"]["recall_10"] > 2 * found["retrieval"]["recall_10_by_chance"]
