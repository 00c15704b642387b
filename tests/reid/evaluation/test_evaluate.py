import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import reid.evaluation.evaluate
import reid.evaluation.results
from reid.config import RunConfig
from reid.data.part_masks import PatchGrid
from reid.data.person_images import load_pixels
from reid.data.transforms import TESTING, normalised, resized
from reid.evaluation.evaluate import evaluate_run
from reid.evaluation.results import read_results
from reid.metrics.rerank import k_reciprocal
from reid.metrics.retrieval import evaluate, evaluate_distances
from reid.model.checkpoint import load_checkpoint
from reid.model.muva import build_model
from reid.training.train import train
from shared.errors import DataError
from shared.labels import read_manifest
from shared.manifest import build_manifest
from shared.workspace import Workspace

Config = Callable[..., RunConfig]
SCORES = {"mean_ap", "mean_inp", "rank_1", "rank_5", "rank_10"}


@pytest.fixture
def trained(workspace: Workspace, sources: None, run_config: Config) -> Path:
    folder = workspace.training_runs / "run"
    train(run_config(), workspace, folder)
    return folder


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return dict(stored)


def test_scores_are_those_of_the_checkpoint_and_of_the_model_before_training(
    trained: Path, workspace: Workspace, run_config: Config
) -> None:
    found = evaluate_run(trained, workspace)
    assert found == read_results(trained)
    assert "train alpha + beta | test gamma" in found.protocol
    config, rows = run_config(), read_manifest(workspace.manifest("gamma"))
    untrained = build_model(config.model, 8, seed=config.seed)
    model = build_model(config.model, 8, seed=5)
    model.load_state_dict(load_checkpoint(trained / "stage2" / "latest.pt")[0]["model"])
    for state, one in (("untrained", untrained), ("trained", model)):
        one.eval()
        features = {}
        for row in rows:  # one image at a time
            pixels = load_pixels(workspace.data_root / "gamma" / row.path)
            sample = resized(pixels, np.empty((0, 4)), config.model.image_size, TESTING)
            with torch.no_grad():
                features[row.path] = one.retrieval_features(normalised(sample.image[None]))[0].numpy()
        stored = read(trained / "embeddings" / f"gamma.{state}.npz")
        assert stored["features"].dtype == np.float32
        assert stored["image_ids"].tolist() == [row.image_id for row in sorted(rows, key=lambda row: row.path)]
        for path, feature in zip(stored["paths"].tolist(), stored["features"], strict=True):
            assert np.allclose(feature, features[path], atol=1e-5)
        query, gallery = ([row for row in rows if row.split == split] for split in ("query", "gallery"))
        sides = [
            part
            for side in (query, gallery)
            for part in ([features[r.path] for r in side], [r.identity for r in side], [r.camera for r in side])
        ]
        assert found.scores["gamma"][state] == pytest.approx(evaluate(*sides).summary(), abs=1e-6)
        assert set(found.scores["gamma"][state]) == SCORES
        assert found.per_split["gamma"][state] == [found.scores["gamma"][state]]


def test_predicted_masks_are_the_last_layers_gate(trained: Path, workspace: Workspace, run_config: Config) -> None:
    evaluate_run(trained, workspace)
    stored, config = read(trained / "masks" / "gamma.npz"), run_config()
    model = build_model(config.model, 8, seed=0).eval()
    model.load_state_dict(load_checkpoint(trained / "stage2" / "latest.pt")[0]["model"])
    grid: PatchGrid = model.grid
    assert stored["masks"].shape == (16, 3, grid.rows, grid.columns) and stored["masks"].dtype == bool
    sample = resized(
        load_pixels(workspace.data_root / "gamma" / str(stored["paths"][3])), np.empty((0, 4)), (48, 24), TESTING
    )
    with torch.no_grad():
        logits = model.encode_images(normalised(sample.image[None])).mask_logits
    assert logits is not None
    assert np.array_equal(stored["masks"][3].reshape(3, -1), (logits[-1, 0].sigmoid() > 0.5).numpy())


def test_only_the_run_and_the_targets_are_needed(trained: Path, workspace: Workspace) -> None:
    for name in ("alpha", "beta"):
        shutil.rmtree(workspace.data_root / name / "bounding_box_train")
        workspace.manifest(name).unlink()
    shutil.rmtree(workspace.labels)
    assert set(evaluate_run(trained, workspace).scores) == {"gamma"}


def test_embeddings_are_used_again_only_for_the_same_checkpoint(
    trained: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate_run(trained, workspace)
    made: list[str] = []
    original = reid.evaluation.evaluate.write_arrays

    def watch(path: Path, **arrays: np.ndarray) -> None:
        made.append(path.name)
        original(path, **arrays)

    monkeypatch.setattr(reid.evaluation.evaluate, "write_arrays", watch)
    assert evaluate_run(trained, workspace).scores == first.scores and made == []
    latest = trained / "stage2" / "latest.pt"
    state, meta = load_checkpoint(latest)
    state["model"]["bnneck.weight"] *= torch.rand(48)
    reid.model.checkpoint.save_checkpoint(latest, state, meta)
    evaluate_run(trained, workspace)
    assert made == ["gamma.npz", "gamma.trained.npz"]
    made.clear()
    (trained / "embeddings" / "gamma.untrained.npz").write_bytes(b"damaged")
    evaluate_run(trained, workspace)
    assert made == ["gamma.untrained.npz"]


def test_the_scores_of_random_splits_are_their_mean(workspace: Workspace, sources: None, run_config: Config) -> None:
    rng = np.random.default_rng(0)
    folder = workspace.data_root / "loose"
    folder.mkdir()
    for identity in range(1, 9):
        for number in range(2):
            pixels = rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{identity}_{number}.png")
    (folder / "dataset.yaml").write_text("layout: pattern\npattern: '{identity}_{*}.png'\n")
    build_manifest("loose", workspace.data_root, workspace.manifest("loose"))
    run = workspace.training_runs / "run"
    train(run_config("evaluation.splits=4", protocol="alpha2loose"), workspace, run)
    found = evaluate_run(run, workspace)
    splits = [split["mean_ap"] for split in found.per_split["loose"]["trained"]]
    assert len(splits) == 4
    assert found.scores["loose"]["trained"]["mean_ap"] == pytest.approx(np.mean(splits))
    assert len(set(splits)) > 1


def test_a_run_without_a_model_says_what_to_do(workspace: Workspace, tmp_path: Path, trained: Path) -> None:
    with pytest.raises(DataError, match="no such run"):
        evaluate_run(tmp_path / "nowhere", workspace)
    (trained / "stage2" / "latest.pt").unlink()
    with pytest.raises(DataError, match="no trained model yet"):
        evaluate_run(trained, workspace)


def test_re_ranking_is_scored_under_the_same_keys_and_the_line_says_so(trained: Path, workspace: Workspace) -> None:
    plain = evaluate_run(trained, workspace)
    found = evaluate_run(trained, workspace, re_ranking=True)
    assert "no re-ranking" in plain.protocol and found.protocol.endswith("| k-reciprocal re-ranking")
    assert (plain.re_ranking, found.re_ranking) == (False, True)
    rows = read_manifest(workspace.manifest("gamma"))
    stored = read(trained / "embeddings" / "gamma.trained.npz")
    features = dict(zip(stored["paths"].tolist(), stored["features"], strict=True))
    query, gallery = ([row for row in rows if row.split == split] for split in ("query", "gallery"))
    table = k_reciprocal(*(np.stack([features[row.path] for row in side]) for side in (query, gallery)))
    labels = [[getattr(r, name) for r in side] for side in (query, gallery) for name in ("identity", "camera")]
    assert found.scores["gamma"]["trained"] == evaluate_distances(table, *labels).summary()
    assert set(found.scores["gamma"]["untrained"]) == SCORES


def test_what_stands_behind_the_scores_is_written_down(trained: Path, workspace: Workspace) -> None:
    found = evaluate_run(trained, workspace)
    assert asdict(found) == json.loads((trained / "scores.json").read_text())  # nothing in it that JSON changes
    details = found.details["gamma"]["trained"]
    for name, (low, high) in details["intervals"].items():
        assert low <= found.scores["gamma"]["trained"][name] <= high
    assert set(details["parts"]) == {"whole image", "head", "upper_body", "legs"}
    assert json.loads((trained / "splits" / "gamma.json").read_text())["rule"] == "fixed query and gallery"
