import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import reid.evaluation.evaluate
import reid.model.checkpoint
from pipelines.__main__ import run as command
from reid.config import RunConfig
from reid.data.decoding import load_pixels, resized_pixels
from reid.data.part_masks import PatchGrid
from reid.data.transforms import TESTING, normalised
from reid.evaluation.evaluate import evaluate_run
from reid.evaluation.results import RANKED, STATES, read_queries, read_results
from reid.metrics.rerank import k_reciprocal
from reid.metrics.retrieval import evaluate, evaluate_distances
from reid.model.checkpoint import load_checkpoint
from reid.model.muva import build_model
from reid.protocols.protocol import parse_protocol
from reid.training.train import train as train_protocol
from shared.errors import ConfigError, DataError, DgreidError
from shared.manifest import build_manifest, read_manifest
from shared.workspace import Workspace

Config = Callable[..., RunConfig]


def train(config: RunConfig, workspace: Workspace, folder: Path) -> None:
    train_protocol(parse_protocol(config.protocol, workspace.data_root), config, workspace, folder)


SCORES = {"mean_ap", "mean_inp", "rank_1", "rank_5", "rank_10"}


@pytest.fixture
def trained(
    train_run: Callable[[RunConfig, Path], None], workspace: Workspace, sources: None, run_config: Config
) -> Path:
    folder = workspace.training_runs / "run"
    train_run(run_config(), folder)
    return folder


@pytest.fixture
def add_loose(workspace: Workspace) -> Callable[..., None]:
    """A data set without splits and cameras: two images of each of 8 people."""

    def add(name: str) -> None:
        rng = np.random.default_rng(0)
        folder = workspace.data_root / name
        folder.mkdir()
        for identity in range(1, 9):
            for number in range(2):
                pixels = rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{identity}_{number}.png")
        (folder / "dataset.yaml").write_text("layout: pattern\npattern: '{identity}_{*}.png'\n")
        build_manifest(name, workspace.data_root, workspace.manifest(name))

    return add


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
            image = resized_pixels(pixels, config.model.image_size, TESTING)
            with torch.no_grad():
                features[row.path] = one.retrieval_features(normalised(image[None]))[0].numpy()
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
    pixels = load_pixels(workspace.data_root / "gamma" / str(stored["paths"][3]))
    image = resized_pixels(pixels, (48, 24), TESTING)
    with torch.no_grad():
        logits = model.encode_images(normalised(image[None])).mask_logits
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


def test_the_scores_of_random_splits_are_their_mean(
    train_run: Callable[[RunConfig, Path], None],
    workspace: Workspace,
    sources: None,
    run_config: Config,
    add_loose: Callable[..., None],
) -> None:
    add_loose("loose")
    run = workspace.training_runs / "run"
    train_run(run_config("evaluation.splits=4", protocol="alpha2loose"), run)
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


def test_every_query_of_every_split_is_written_with_its_ranked_gallery(
    train_run: Callable[[RunConfig, Path], None],
    workspace: Workspace,
    sources: None,
    run_config: Config,
    add_loose: Callable[..., None],
) -> None:
    """Against a loop over the stored splits and embeddings."""
    add_loose("loose")
    run = workspace.training_runs / "run"
    train_run(run_config("evaluation.splits=3", protocol="alpha2loose"), run)
    results = evaluate_run(run, workspace)
    for state in STATES:
        stored = read(run / "embeddings" / f"loose.{state}.npz")
        feature = dict(zip(stored["paths"].tolist(), stored["features"].astype(float), strict=True))
        splits = json.loads((run / "splits" / "loose.json").read_text())["splits"]
        queries = read_queries(run, results, "loose", state)
        row = 0
        for number, split in enumerate(splits):
            firsts = []
            for path in split["query"]:
                who = path.split("_")[0]
                ranked = sorted(
                    split["gallery"], key=lambda other, q=path: np.square(feature[q] - feature[other]).sum()
                )
                correct = [other.split("_")[0] == who for other in ranked]
                hits = np.flatnonzero(correct) + 1
                assert queries.split[row] == number and queries.paths[queries.query[row]] == path
                length = min(RANKED, len(ranked))
                assert queries.paths[queries.ranked[row, :length]].tolist() == ranked[:length]
                assert queries.correct[row, :length].tolist() == correct[:length]
                assert (queries.ranked[row, length:] == -1).all() and not queries.correct[row, length:].any()
                assert queries.first_rank[row] == hits[0]
                assert queries.average_precision[row] == pytest.approx(np.mean(np.arange(1, len(hits) + 1) / hits))
                assert queries.inverse_penalty[row] == pytest.approx(len(hits) / hits[-1])
                firsts.append(hits[0])
                row += 1
            cmc = [np.mean([first <= rank for first in firsts]) for rank in range(1, 51)]
            np.testing.assert_allclose(queries.cmc[number], cmc)
        assert row == len(queries.query)
        per_split = [queries.average_precision[queries.split == number].mean() for number in range(3)]
        assert results.scores["loose"][state]["mean_ap"] == pytest.approx(100 * np.mean(per_split))
        breakdown = results.breakdown("loose", state)
        assert breakdown["queries"] == row and not results.is_of_first_split("loose", state)
        assert results.details["loose"][state]["queries"] == row // 3
        spread = results.spread("loose", state)
        assert spread and spread["splits"] == 3
        assert spread["std"]["mean_ap"] == pytest.approx(np.std(100 * np.array(per_split), ddof=1))


def test_a_reader_refuses_queries_that_are_not_of_these_scores(trained: Path, workspace: Workspace) -> None:
    results = evaluate_run(trained, workspace)
    path = trained / "evaluation" / "gamma.trained.npz"
    with pytest.raises(DataError, match="not of the evaluation"):
        read_queries(trained, replace(results, models={"trained": "another"}), "gamma", "trained")
    with pytest.raises(DataError, match="not of the evaluation"):
        read_queries(trained, replace(results, re_ranking=True), "gamma", "trained")
    arrays = read(path)
    np.savez(path, **{**arrays, "schema": np.array(99)})
    with pytest.raises(DataError, match="version 99"):
        read_queries(trained, results, "gamma", "trained")
    np.savez(path, **{**arrays, "query": arrays["query"] + 1000})
    with pytest.raises(DataError, match="do not fit together"):
        read_queries(trained, results, "gamma", "trained")
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match=r"could not be read .*\n  fix: dgreid eval --run run"):
        read_queries(trained, results, "gamma", "trained")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"scores": {"a": 1}}', '{"scores": {"a": {}}, "tests": 3}'])
def test_a_damaged_scores_file_names_the_command(content: str, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(DataError, match="dgreid eval --run"):
        read_results(tmp_path)


def test_a_data_set_that_the_protocol_does_not_name_is_scored_beside(
    trained: Path, workspace: Workspace, add_dataset: Callable[..., object]
) -> None:
    first = evaluate_run(trained, workspace)
    add_dataset("delta", test=True, identities=5)
    found = evaluate_run(trained, workspace, targets=["delta"])
    assert found.targets == ["gamma", "delta"] and found.scores["gamma"] == first.scores["gamma"]
    assert found.protocol == first.protocol + " | delta is not named by the run's protocol"
    assert found.tests["delta"]["role"] == "further" and "test delta" in found.tests["delta"]["protocol"]
    assert read_queries(trained, found, "gamma", "trained").query.size
    alone = evaluate_run(trained, workspace, targets=["delta"], re_ranking=True)
    assert alone.targets == ["delta"]  # gamma's scores were made without re-ranking
    assert "test delta" in alone.protocol and "k-reciprocal" in alone.protocol


def test_a_source_is_refused_or_marked(trained: Path, workspace: Workspace, add_dataset: Callable[..., object]) -> None:
    with pytest.raises(ConfigError, match=r"alpha was trained on.*\n.*--allow-source"):
        evaluate_run(trained, workspace, targets=["alpha"])
    add_dataset("alpha", test=True, first=20)  # test images that were not trained on
    found = evaluate_run(trained, workspace, targets=["alpha"], allow_source=True)
    assert found.tests["alpha"]["role"] == "source" and found.label("alpha") == "alpha (trained on)"
    assert found.protocol.startswith("supervised, train alpha + beta | test alpha")
    assert found.protocol.endswith("| alpha was trained on: not a cross-domain score")


def test_test_images_that_were_trained_on_have_no_score(
    train_run: Callable[[RunConfig, Path], None],
    workspace: Workspace,
    sources: None,
    run_config: Config,
    add_loose: Callable[..., None],
) -> None:
    add_loose("loose")
    run = workspace.training_runs / "run"
    train_run(run_config("data.missing_labels=prior", protocol="loose2gamma"), run)
    with pytest.raises(ConfigError, match="no train split of its own"):
        evaluate_run(run, workspace, targets=["loose"], allow_source=True)


def test_one_target_that_cannot_be_scored_costs_only_its_own_scores(
    trained: Path, workspace: Workspace, add_dataset: Callable[..., object]
) -> None:
    for path in sorted(workspace.data_root.glob("gamma/*/*_c2s1_*")):  # one camera: the rule removes every match
        path.unlink()
    add_dataset("delta", test=True)
    workspace.manifest("gamma").unlink()
    build_manifest("gamma", workspace.data_root, workspace.manifest("gamma"))
    found = evaluate_run(trained, workspace, targets=["gamma", "delta", "grid"])
    assert found.targets == ["delta"] and found == read_results(trained)
    assert "has a correct match" in found.failed["gamma"] and "no manifest" in found.failed["grid"]
    assert "gamma could not be scored: " in " ".join(found.notes())
    with pytest.raises(DgreidError, match=r"no target could be scored .*gamma.*grid"):
        evaluate_run(trained, workspace, targets=["gamma", "grid"])
    assert read_results(trained).targets == ["delta"]
    with pytest.raises(DgreidError, match="has a correct match"):
        evaluate_run(trained, workspace)


def test_missing_weights_of_the_untrained_model_cost_nothing_else(trained: Path, workspace: Workspace) -> None:
    with_both = evaluate_run(trained, workspace)
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config["model"] |= {"weights_file": "gone.safetensors", "weights_sha256": "0" * 64}
    (trained / "config.yaml").write_text(yaml.safe_dump(config))
    found = evaluate_run(trained, workspace)
    assert found.scores["gamma"] == {"trained": with_both.scores["gamma"]["trained"]}
    assert "gone.safetensors" in found.untrained_missing
    assert any("gone.safetensors" in sentence for sentence in found.notes())


def test_the_untrained_model_can_be_left_out(trained: Path, workspace: Workspace) -> None:
    found = evaluate_run(trained, workspace, untrained=False)
    assert list(found.scores["gamma"]) == ["trained"]
    assert not (trained / "embeddings" / "gamma.untrained.npz").exists()


def test_queries_without_a_match_and_duplicates_are_counted(
    trained: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    root = workspace.data_root / "gamma"
    query = sorted((root / "query").iterdir())
    shutil.copy(query[0], root / "bounding_box_test" / query[0].name)  # removed by the same-camera rule
    shutil.copy(query[1], root / "bounding_box_test" / query[1].name.replace("_c1", "_c2"))  # counts as found
    for path in (root / "bounding_box_test").glob(f"{query[3].name[:4]}_*"):
        path.unlink()
    build_manifest("gamma", workspace.data_root, workspace.manifest("gamma"))
    found = evaluate_run(trained, workspace)
    test = found.tests["gamma"]
    assert (test["queries"], test["valid_queries"]) == (4, 3)
    assert (test["duplicates"], test["scored_duplicates"]) == (2, 1)
    told = " ".join(found.notes())
    assert "3 of 4 queries scored" in told and "2 query images are in the gallery too" in told
    assert np.isnan(read_queries(trained, found, "gamma", "trained").average_precision).sum() == 1


def test_removal_is_not_claimed_where_no_camera_is_labelled(
    train_run: Callable[[RunConfig, Path], None],
    workspace: Workspace,
    sources: None,
    run_config: Config,
    add_loose: Callable[..., None],
) -> None:
    add_loose("loose")
    run = workspace.training_runs / "run"
    train_run(run_config(protocol="alpha2gamma+loose"), run)
    found = evaluate_run(run, workspace)
    assert "removed (no camera labels in loose)" in found.protocol
    assert "no image removed: no camera labels" in found.tests["loose"]["protocol"]
    assert "removed (" not in found.tests["gamma"]["protocol"]


@pytest.fixture
def add_table(workspace: Workspace) -> Callable[..., None]:
    """A data set of a table: (path, identity, camera, split) of each image; `broken` ones cannot be read."""

    def add(name: str, rows: list[tuple[str, object, object, str]], broken: tuple[str, ...] = ()) -> None:
        rng = np.random.default_rng(0)
        folder = workspace.data_root / name
        folder.mkdir()
        for path, *_ in rows:
            Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(folder / path)
            if path in broken:
                (folder / path).write_bytes(f"no image: {path}".encode())
        lines = ["path,identity,camera,split", *(",".join(map(str, row)) for row in rows)]
        (folder / "images.csv").write_text("\n".join(lines) + "\n")
        (folder / "dataset.yaml").write_text("layout: csv\ncsv: images.csv\n")
        build_manifest(name, workspace.data_root, workspace.manifest(name))

    return add


FOUR = range(1, 5)
FIXED_ROWS = [
    *((f"q{who}.png", who, 1, "query") for who in FOUR),
    *((f"g{who}_{number}.png", who, 2, "gallery") for who in FOUR for number in (1, 2)),
]


@pytest.mark.parametrize(
    ("rows", "broken", "told"),
    [
        (FIXED_ROWS, (), []),
        (
            FIXED_ROWS,
            ("q1.png", "g2_1.png", "g2_2.png"),
            ["1 query and 2 gallery images are unreadable and left out.", "2 of 3 queries scored"],
        ),
        (
            [*FIXED_ROWS, ("j1.png", -1, 1, "query"), ("j2.png", -1, 1, "query")],
            (),
            ["2 query images are junk or distractors: nobody is searched for with them."],
        ),
        (
            [*FIXED_ROWS, ("a1.png", 9, 1, "all"), ("a2.png", 9, 2, "all")],
            (),
            ["2 images of split 'all' are neither query nor gallery."],
        ),
        (
            [(path, who, "" if path == "q1.png" else camera, split) for path, who, camera, split in FIXED_ROWS],
            (),
            ["1 of 4 query images have no camera label: none is removed as same-camera for them."],
        ),
        (
            [(path, who, "" if path[-5:] == "2.png" else camera, split) for path, who, camera, split in FIXED_ROWS],
            (),
            ["1 of 4 query and 4 of 8 gallery images have no camera label"],
        ),
        (
            [(f"{who}_{n}.png", who, n, "all") for who in range(1, 10) for n in (1, 2) if who < 4 or n < 2],
            (),
            ["6 of 9 people have no two images from different cameras: in no split."],
        ),
        (
            [(f"{who}_{n}.png", who, 1 if who > 3 else n, "all") for who in range(1, 8) for n in (1, 2)],
            ("7_1.png",),
            ["1 test images are unreadable and left out.", "4 of 7 people have no two images from different cameras"],
        ),
    ],
)  # fmt: skip
def test_what_scores_are_not_about_is_told(
    rows: list[tuple[str, object, object, str]],
    broken: tuple[str, ...],
    told: list[str],
    trained: Path,
    workspace: Workspace,
    add_table: Callable[..., None],
) -> None:
    add_table("odd", rows, broken)
    notes = evaluate_run(trained, workspace, targets=["odd"], untrained=False).notes()
    notes = [note for note in notes if "untrained" not in note]
    assert len(notes) == len(told) and all(any(one in note for note in notes) for one in told), notes


def test_people_of_half_sets_without_a_gallery_image_are_told(
    trained: Path, workspace: Workspace, add_dataset: Callable[..., object]
) -> None:
    """VIPeR with one camera's folder half copied."""
    for camera, people in (("cam_a", range(1, 9)), ("cam_b", range(1, 4))):
        for who in people:
            path = workspace.data_root / "VIPeR" / camera / f"{who:03d}_45.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((32, 16, 3), 9 * who, np.uint8)).save(path)
    build_manifest("viper", workspace.data_root, workspace.manifest("viper"))
    notes = evaluate_run(trained, workspace, targets=["viper"], untrained=False).notes()
    assert "viper: 5 of 8 people of the query have no gallery image: in no split." in notes


def test_scores_of_an_earlier_version_are_made_again_beside_a_new_target(
    trained: Path, workspace: Workspace, add_dataset: Callable[..., object]
) -> None:
    first = evaluate_run(trained, workspace)
    old = json.loads((trained / "scores.json").read_text())
    for key in ("breakdowns", "tests", "models", "failed", "untrained_missing"):
        del old[key]
    (trained / "scores.json").write_text(json.dumps(old))
    assert read_results(trained).scores == first.scores
    add_dataset("delta", test=True)
    found = evaluate_run(trained, workspace, targets=["delta"])
    assert set(found.targets) == {"gamma", "delta"} and found.scores["gamma"] == first.scores["gamma"]
    assert set(found.tests) == {"gamma", "delta"}


def test_the_command_scores_what_it_can_and_ends_with_the_names(
    trained: Path,
    workspace: Workspace,
    add_dataset: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(workspace.data_root))
    monkeypatch.setenv("RUNS_ROOT", str(workspace.runs_root))
    add_dataset("delta", test=True)
    add_dataset("lonely", test=True, images=1)
    options = ["eval", "--run", "run", "--device", "cpu", "--target", "delta", "--target", "lonely"]
    assert command(options) == 1
    out, err = capfd.readouterr()
    assert "delta" in out and "1 of 2 targets could not be scored (lonely" in err
    assert command(["eval", "--run", "run", "--no-untrained"]) == 0
    assert "left out by --no-untrained" in capfd.readouterr().out
    assert command(["eval", "--run", "run", "--target", "alpha"]) == 2
    assert "--allow-source" in capfd.readouterr().err
    assert command(["eval", "--run", "run", "--device", "quantum"]) == 2
    assert "quantum" in capfd.readouterr().err
